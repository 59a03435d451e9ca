"""Captions in the order of the shards' rows: a file that is mapped into memory.

text      all captions, UTF-8, one behind the other
firsts    [N + 1] int64, captions in front of each of the N rows of all shards
ends      [C + 1] int64, where each of the C captions ends in the text
members   [N] uint8, whether the tar has a caption of its own
footer    JSON: version, digest of the captions, shards, where the parts begin
its size  8 bytes, and the word that such a file ends in
"""

from __future__ import annotations

import hashlib
import itertools
import json
import struct
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

_WORD = b"clipcap1"
_TAIL = struct.Struct("<Q8s")


@dataclass(frozen=True)
class JoinedShard:
    """A shard whose samples were looked up.

    Attributes:
        name: of the tar, without its folder.
        samples: N of its index, or of a scan.
        mark: digest of its index's lines.
        captions: digest of its captions, once they are known.
    """

    name: str
    samples: int
    mark: str
    captions: str = ""


class Joined:
    """Captions of the rows of some shards.

    Args:
        path: of the file.

    Attributes:
        path: of the file.
        shards: in their order.
        digest: of all captions and of whose they are, 64 hexadecimal digits.
        without: samples that no row is of.
        unused: keys of the tables that no sample has.
        example: of a sample that no row is of, its key and the name of its shard; or empty.

    Raises:
        ValueError: it is no such file.
        OSError: it cannot be read.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        data = np.memmap(path, np.uint8, "r")
        size, word = _TAIL.unpack(data[-_TAIL.size :].tobytes())
        if word != _WORD:
            raise ValueError(f"{path} is no file of joined captions")
        footer = json.loads(data[-_TAIL.size - size : -_TAIL.size].tobytes())
        self.shards = [JoinedShard(**each) for each in footer["shards"]]
        self.digest: str = footer["digest"]
        self.without: int = footer["without"]
        self.unused: int = footer["unused"]
        self.example: list[str] = footer["example"]
        rows, captions = footer["rows"], footer["captions"]
        starts = footer["starts"]
        self._text = data[: footer["text"]]
        self._firsts = _view(data, starts[0], rows + 1)
        self._ends = _view(data, starts[1], captions + 1)
        self._members = data[starts[2] : starts[2] + rows]
        self._bases = np.append(0, np.cumsum([each.samples for each in self.shards])).tolist()

    def __reduce__(self) -> tuple[Any, ...]:
        return Joined, (self.path,)

    @property
    def captions(self) -> int:
        """Captions of all shards."""
        return len(self._ends) - 1

    def said(self, shard: int) -> np.ndarray:
        """``[N]`` bool: which rows of a shard have a caption here."""
        here = slice(self._bases[shard], self._bases[shard + 1] + 1)
        said: np.ndarray = np.diff(self._firsts[here]) > 0
        return said

    def members(self, shard: int) -> np.ndarray:
        """``[N]`` bool: which rows of a shard have a caption in the tar."""
        return self._members[self._bases[shard] : self._bases[shard + 1]] > 0

    def texts(self, shard: int, row: int) -> list[str]:
        """The captions of a row; none where it has none here."""
        at = self._bases[shard] + row
        first, stop = self._firsts[at], self._firsts[at + 1]
        ends = self._ends[first : stop + 1].tolist()
        return [self._text[start:end].tobytes().decode() for start, end in itertools.pairwise(ends)]


def _view(data: np.ndarray, start: int, count: int) -> np.ndarray:
    return data[start : start + 8 * count].view("<i8")


class JoinedWriter:
    """Writes such a file, shard by shard.

    Args:
        file: open for writing.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._shards: list[JoinedShard] = []
        self._counts: list[np.ndarray] = []
        self._sizes: list[np.ndarray] = []
        self._members: list[np.ndarray] = []
        self._digest = hashlib.sha256()

    def add(
        self,
        shard: JoinedShard,
        counts: np.ndarray,
        sizes: np.ndarray,
        text: np.ndarray,
        members: np.ndarray,
    ) -> None:
        """The next shard.

        Args:
            shard: which.
            counts: ``[N]`` int64, captions of each row.
            sizes: ``[C]`` int64, bytes of each caption.
            text: all their bytes.
            members: ``[N]`` bool, rows with a caption in the tar.
        """
        digest = hashlib.sha256()
        for part in (counts.astype("<i8"), sizes.astype("<i8"), text):
            digest.update(part.tobytes())
        shard = replace(shard, captions=digest.hexdigest()[:16])
        self._digest.update(json.dumps(asdict(shard)).encode() + b"\n")
        self._file.write(text.tobytes())
        self._shards.append(shard)
        self._counts.append(counts)
        self._sizes.append(sizes)
        self._members.append(members)

    def finish(self, unused: int, example: Sequence[str]) -> None:
        """Write what stands behind the text.

        Args:
            unused: keys of the tables that no sample has.
            example: see ``Joined``.
        """
        counts = np.concatenate([np.zeros(1, np.int64), *self._counts])
        sizes = np.concatenate([np.zeros(1, np.int64), *self._sizes])
        text = self._file.tell()
        self._file.write(bytes(-text % 8))
        starts = []
        for part in (np.cumsum(counts), np.cumsum(sizes), np.concatenate(self._members)):
            starts.append(self._file.tell())
            self._file.write(part.astype("u1" if part.dtype == bool else "<i8").tobytes())
        footer = {
            "shards": [asdict(shard) for shard in self._shards],
            "digest": self._digest.hexdigest(),
            "rows": len(counts) - 1,
            "captions": len(sizes) - 1,
            "text": text,
            "starts": starts,
            "without": int((counts[1:] == 0).sum()),
            "unused": unused,
            "example": list(example),
        }
        data = json.dumps(footer).encode("utf-8", "surrogateescape")
        self._file.write(data + _TAIL.pack(len(data), _WORD))


def open_joined(path: Path) -> Joined | None:
    """A file that is there and whole; else None."""
    try:
        return Joined(str(path))
    except (FileNotFoundError, ValueError, KeyError, IndexError, struct.error):
        return None
