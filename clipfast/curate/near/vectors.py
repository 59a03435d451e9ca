"""The vectors of all pictures, one after the other in a file that workers map into memory.

Equal vectors are kept once. A picture whose vector an earlier one has is compared with nothing
else: what it is like, that one is like. So a thousand white pictures are a thousand pairs, and not
half a million.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from clipfast.curate.engine.parts import digest, read_table
from clipfast.curate.near.embeddings import matrix
from clipfast.files import whole_file, write_whole

_ABOUT = "about.json"
_COLUMNS = {"shard": np.int32, "row": np.int32, "pixels": np.int64, "letters": np.int64}


@dataclass(frozen=True)
class Vectors:
    """N pictures that decode, with M vectors that differ.

    Attributes:
        folder: of the files.
        digest: of what they were made of.
        distinct: M.
        width: D, of all looks together.
        looks: of a detector at a picture, see ``clipfast.curate.near.looks``.
        mirrored: whether there are vectors of the mirrored pictures.
    """

    folder: str
    digest: str
    distinct: int
    width: int
    looks: int
    mirrored: bool

    @property
    def vectors(self) -> np.ndarray:
        """``[M, D]`` float16, mapped: of the pictures as they are."""
        return _mapped(self)[:, : self.width]

    @property
    def flipped(self) -> np.ndarray:
        """``[M, D]`` float16, mapped: of the mirrored pictures, where there are some."""
        return _mapped(self)[:, self.width :]

    @property
    def number(self) -> np.ndarray:
        """``[N]`` int64: which of the M vectors each picture has; of the pictures with one vector
        the first has the first occurrence of its number."""
        return self.column("number")

    def column(self, name: str) -> np.ndarray:
        """``[N]``: ``shard`` (its place among the shards), ``row``, ``pixels`` or ``letters`` (of
        the longest caption) of each picture."""
        return np.load(Path(self.folder, f"{name}.npy"), mmap_mode="r")


@functools.lru_cache(2)
def _mapped(vectors: Vectors) -> np.ndarray:
    path = Path(vectors.folder, "vectors.f16")
    width = vectors.width * (1 + vectors.mirrored)
    if not vectors.distinct:
        return np.empty((0, width), "<f2")
    return np.memmap(path, "<f2", "r", shape=(vectors.distinct, width))


def gather(folder: str, paths: Sequence[str], looks: int = 1) -> Vectors:
    """Put the vectors of shards into one file; what is there already stays.

    Takes 48 bytes of memory per picture.

    Args:
        folder: a local one, for the file's own folder.
        paths: of the tables of ``Embeddings``, in the order of the shards' names.
        looks: of the detector that made them.

    Raises:
        ValueError: a table is damaged.
        OSError: a file cannot be written.
    """
    # Without the folder above: work that is moved stays the same.
    known = digest([path.split("/")[-2:] for path in paths])
    place = Path(folder, f"vectors-{known}")
    about = place / _ABOUT
    if about.exists():
        return Vectors(str(place), known, **json.loads(about.read_text()))
    place.mkdir(parents=True, exist_ok=True)
    columns, width, mirrored = _columns(paths)
    number, is_first = _numbers(columns.pop("key"))
    for name, column in columns.items():
        with whole_file(place / f"{name}.npy") as temporary, temporary.open("wb") as file:
            np.save(file, column)
    number = _write(place, paths, number, is_first)
    with whole_file(place / "number.npy") as temporary, temporary.open("wb") as file:
        np.save(file, number)
    distinct = int(number.max(initial=-1)) + 1
    made = {"distinct": distinct, "width": width, "looks": looks, "mirrored": mirrored}
    write_whole(about, json.dumps(made).encode())
    return Vectors(str(place), known, distinct, width, looks, mirrored)


def _blocks(paths: Sequence[str]) -> Any:
    """Number, table without nulls, rows and bytes of the vectors of each shard."""
    for place, path in enumerate(paths):
        table = read_table(path)
        known = np.flatnonzero(table["vector"].is_valid().to_numpy())
        table = table.take(known)
        both = [
            matrix(table[name]) for name in ("vector", "mirrored") if name in table.column_names
        ]
        yield place, table, known, np.ascontiguousarray(np.concatenate(both, 1))


def _columns(paths: Sequence[str]) -> tuple[dict[str, np.ndarray], int, bool]:
    pieces: dict[str, list[np.ndarray]] = {name: [] for name in (*_COLUMNS, "key")}
    width, mirrored = 0, False
    for place, table, known, both in _blocks(paths):
        mirrored = "mirrored" in table.column_names
        width = both.shape[1] // (1 + mirrored)
        pieces["shard"].append(np.full(len(known), place))
        pieces["row"].append(known)
        pieces["pixels"].append(table["pixels"].to_numpy())
        pieces["letters"].append(table["letters"].to_numpy())
        pieces["key"].append(_keys(both))
    columns = {
        name: np.concatenate(pieces[name]).astype(kind, copy=False)
        for name, kind in {**_COLUMNS, "key": np.uint64}.items()
    }
    return columns, width, mirrored


def _keys(rows: np.ndarray) -> np.ndarray:
    """[N] uint64 of the bytes of rows: equal rows have equal keys, others hardly ever."""
    words = rows.view(np.uint16).astype(np.uint64)
    factors = np.random.default_rng(0).integers(1, 1 << 63, words.shape[1], np.uint64)
    mixed = (words + np.uint64(1)) * factors
    mixed ^= mixed >> np.uint64(29)
    keys: np.ndarray = (mixed * (factors | np.uint64(1))).sum(1, dtype=np.uint64)
    return keys


def _numbers(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of each key, its number among the different ones in the order of their first occurrence, and
    whether this is the first."""
    _, first, inverse = np.unique(keys, return_index=True, return_inverse=True)
    is_first = np.zeros(len(keys), bool)
    is_first[first] = True
    rank = np.cumsum(is_first) - 1
    return rank[first][inverse], is_first


def _write(
    place: Path, paths: Sequence[str], number: np.ndarray, is_first: np.ndarray
) -> np.ndarray:
    """Write each vector once. Two that share a key and differ are both written."""
    firsts, start = int(is_first.sum()), 0
    number = number.copy()
    others: list[np.ndarray] = []
    with whole_file(place / "vectors.f16") as temporary, temporary.open("r+b") as file:
        for _, _, known, both in _blocks(paths):
            here = is_first[start : start + len(known)]
            file.write(both[here].tobytes())
            file.flush()
            again = np.flatnonzero(~here)
            if len(again):
                stored = np.memmap(temporary, "<f2", "r").reshape(-1, both.shape[1])
                odd = again[(stored[number[start + again]] != both[again]).any(1)]
                number[start + odd] = firsts + len(others) + np.arange(len(odd))
                others += list(both[odd])
            start += len(known)
        for row in others:
            file.write(row.tobytes())
    return number
