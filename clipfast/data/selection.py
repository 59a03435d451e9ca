"""Which samples of a data set are used: a file beside the shards, and no shard is written anew.

A selection is a Parquet file with a row per shard, sorted by name:

    shard    string   name of the tar, without its folder: data may move
    samples  int64    of the index that the selection was made of
    mark     string   digest of that index's lines: of two shards of one name it tells which
    kept     int64    number of bits that are set
    keep     binary   ceil(samples / 8) bytes; bit i % 8 of byte i // 8, the lowest first, is row i

and, in version 2, where one of its shards has such a choice; null where a shard has none:

    caption     list<int32>  of each sample that is kept, which of its captions is used; -1: any
    captions_of string       among which captions: those of another text or table are others
    weight      list<float>  of each sample that is kept, how often an epoch has it in the mean

400 million samples take 50 MB before Parquet compresses them. The file's metadata has a digest of
its rows: equal selections have equal digests, whoever wrote them.
"""

import hashlib
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from clipfast.arguments import WrongKindError, shown, whole_number
from clipfast.data.arrow import import_arrow
from clipfast.storage import storage_of
from clipfast.storage.paths import split

# The second has what the first has not; without it the first is written, which older ones read.
_VERSION, _WITH_CHOICES = "1", "2"
_VERSION_KEY = b"clipfast.selection"
_DIGEST_KEY = b"clipfast.selection.digest"
_MADE_KEY = b"clipfast.selection.made"
_COLUMNS = ("shard", "samples", "mark", "kept", "keep")
_CHOICES = ("caption", "captions_of", "weight")
# Of a weight, as ``clipfast.data.order.copies`` counts.
LEAST_WEIGHT, MOST_WEIGHT = 2.0**-16, 65_535.0


@dataclass(frozen=True)
class ShardChoice:
    """What is kept of one shard; ``choose`` makes one of row numbers.

    Attributes:
        shard: name of the tar without its folder.
        samples: of its index.
        mark: digest of its index's lines, see ``clipfast.data.table.identify``.
        keep: a bit per sample, see the head of this module.
        captions: an int32 per sample that is kept, see the head of this module; empty: no choice.
        captions_of: what they are numbers of.
        weights: a float32 per sample that is kept; empty: each has the weight 1.

    Raises:
        ValueError: there are other bits than samples, or other numbers than samples that are kept.
    """

    shard: str
    samples: int
    mark: str
    keep: bytes
    captions: bytes = b""
    captions_of: str = ""
    weights: bytes = b""

    def __post_init__(self) -> None:
        wanted = -(-self.samples // 8)
        spare = 8 * wanted - self.samples
        if len(self.keep) != wanted or (spare and self.keep[-1] >> (8 - spare)):
            raise ValueError(
                f"{self.shard}: {len(self.keep):,} bytes of bits for {self.samples:,} samples; "
                f"expected {wanted:,}, and no bit behind the last sample"
            )
        for what, given in (("captions", self.captions), ("weights", self.weights)):
            if given and len(given) != 4 * self.kept:
                raise ValueError(
                    f"{self.shard}: {len(given) // 4:,} {what} for {self.kept:,} samples kept"
                )

    @cached_property
    def kept(self) -> int:
        """Number of samples that are kept."""
        return int(np.unpackbits(np.frombuffer(self.keep, np.uint8)).sum())

    def rows(self) -> np.ndarray:
        """``[kept]`` int64: numbers of the samples that are kept, rising."""
        bits = np.frombuffer(self.keep, np.uint8)
        return np.flatnonzero(np.unpackbits(bits, count=self.samples, bitorder="little"))

    def chosen(self) -> np.ndarray | None:
        """``[kept]`` int32: which caption of each is used, -1 for any; None: there is no choice."""
        return np.frombuffer(self.captions, "<i4") if self.captions else None

    def weighted(self) -> np.ndarray | None:
        """``[kept]`` float32: the weight of each; None where each has the weight 1."""
        return np.frombuffer(self.weights, "<f4") if self.weights else None


def choose(
    shard: str,
    samples: int,
    mark: str,
    rows: Any,
    *,
    captions: Any = None,
    captions_of: str = "",
    weights: Any = None,
) -> ShardChoice:
    """Keep some samples of a shard.

    Args:
        shard: path of the tar; its last part counts.
        samples: of its index.
        mark: digest of its index's lines; ``clipfast.data.table.identify`` gives both.
        rows: numbers of the samples to keep, in any order.
        captions: of each of them, which of its captions is used, counted from 0; -1: any. None
            chooses none.
        captions_of: what tells these captions from others, see
            ``clipfast.data.captions.captions_of``; "": it is not compared.
        weights: of each of them, how often an epoch has it in the mean, from 1/65,536 to 65,535.
            None: once.

    Raises:
        TypeError: rows or captions are no whole numbers; a ``ValueError`` too.
        ValueError: there is no such row, or one stands there twice; or there are not as many
            captions or weights, or one is out of its range.
    """
    samples = whole_number("samples", samples, 0)
    chosen = np.asarray(rows)
    if chosen.ndim != 1 or not (chosen.size == 0 or np.issubdtype(chosen.dtype, np.integer)):
        raise WrongKindError(f"rows must be a list of whole numbers; got {shown(rows)}")
    chosen = chosen.astype(np.int64)
    if chosen.size and not 0 <= chosen.min() <= chosen.max() < samples:
        raise ValueError(
            f"{shard}: rows count from 0 to {samples - 1:,}; got {chosen.min():,} to "
            f"{chosen.max():,}"
        )
    bits = np.zeros(samples, np.uint8)
    bits[chosen] = 1
    if int(bits.sum()) != len(chosen):
        raise ValueError(f"{shard}: a row is named twice among the {len(chosen):,} to keep")
    keep = np.packbits(bits, bitorder="little").tobytes()
    order = np.argsort(chosen)
    numbers = _numbers(shard, "captions", captions, order, -1, 2**31 - 1, np.dtype("<i4"))
    return ShardChoice(
        split(shard)[1],
        samples,
        mark,
        keep,
        numbers,
        captions_of if numbers else "",
        _numbers(shard, "weights", weights, order, LEAST_WEIGHT, MOST_WEIGHT, np.dtype("<f4")),
    )


def _numbers(
    shard: str, what: str, given: Any, order: np.ndarray, least: float, most: float, kind: np.dtype
) -> bytes:
    """A number of each sample as bytes, rising by row; none where all say nothing."""
    if given is None:
        return b""
    numbers = np.asarray(given)
    is_kind = np.issubdtype(numbers.dtype, np.integer) or (
        kind.kind == "f" and np.issubdtype(numbers.dtype, np.floating)
    )
    if numbers.ndim != 1 or not (numbers.size == 0 or is_kind):
        raise WrongKindError(f"{what} must be a list of numbers; got {shown(given)}")
    if len(numbers) != len(order):
        raise ValueError(f"{shard}: {len(numbers):,} {what} for {len(order):,} rows")
    # A number that is none is out of any range.
    if numbers.size and not ((numbers >= least) & (numbers <= most)).all():
        odd = numbers[~((numbers >= least) & (numbers <= most))][0]
        raise ValueError(f"{shard}: {what} are from {least:g} to {most:,.0f}; got {odd}")
    says_nothing = -1 if what == "captions" else 1
    if (numbers == says_nothing).all():
        return b""
    return numbers[order].astype(kind).tobytes()


class Selection:
    """What is kept of the shards of a data set.

    Args:
        choices: of each shard; a shard without one is left out whole.
        name: for messages, such as the path of its file.
        made: how it was made, for people.

    Raises:
        ValueError: two choices are of one shard, or a name is no UTF-8.
    """

    def __init__(
        self, choices: Iterable[ShardChoice], name: str = "the selection", made: str = ""
    ) -> None:
        self.name = name
        self.made = made
        self.choices: list[ShardChoice] = sorted(choices, key=lambda c: (c.shard, c.mark))
        self._by_name: dict[str, list[ShardChoice]] = {}
        for choice in self.choices:
            try:
                choice.shard.encode()
            except UnicodeEncodeError:
                raise ValueError(
                    f"shard {choice.shard!r} has a name that is no UTF-8, which a selection cannot "
                    "hold: rename it"
                ) from None
            others = self._by_name.setdefault(choice.shard, [])
            if any(other.mark == choice.mark for other in others):
                raise ValueError(f"{name} names shard {choice.shard} of one index twice")
            others.append(choice)

    @property
    def kept(self) -> int:
        """Samples that are kept."""
        return sum(choice.kept for choice in self.choices)

    @cached_property
    def digest(self) -> str:
        """64 hexadecimal digits, the same for equal choices."""
        digest = hashlib.sha256()
        for choice in self.choices:
            head: list[str | int] = [choice.shard, choice.samples, choice.mark, len(choice.keep)]
            if choice.captions or choice.weights:
                head += [len(choice.captions), choice.captions_of, len(choice.weights)]
            digest.update(json.dumps(head).encode() + b"\n" + choice.keep)
            digest.update(choice.captions + choice.weights)
        return digest.hexdigest()

    def names(self, shard: str) -> bool:
        """Whether there is a choice for a shard of this name, of whatever index."""
        return split(shard)[1] in self._by_name

    def choice(self, shard: str, samples: int, mark: str) -> ShardChoice | None:
        """What is kept of a shard; None where the selection does not name it.

        Args:
            shard: path of the tar.
            samples: of its index.
            mark: digest of its index's lines.

        Raises:
            ValueError: the selection was made of another index of it.
        """
        choices = self._by_name.get(split(shard)[1])
        if choices is None:
            return None
        for choice in choices:
            if choice.mark == mark and choice.samples == samples:
                return choice
        had = " or ".join(f"{choice.samples:,}" for choice in choices)
        lines = "" if had != f"{samples:,}" else ", with other keys or other places in the tar"
        raise ValueError(
            f"selection {self.name} was made of another index of {shard} ({had} samples, this one "
            f"has {samples:,}{lines}): make the selection anew"
        )


def write_selection(path: str, rows: Iterable[ShardChoice], made: Any = None) -> str:
    """Write a selection, in one atomic step.

    Args:
        path: of the file, a local one or in a store.
        rows: the choice for each shard, in any order.
        made: how it was made, for people: anything that JSON holds.

    Returns:
        The selection's digest.

    Raises:
        ValueError: see ``Selection``; or pyarrow is not installed.
    """
    arrow, parquet = _pyarrow(path)
    selection = Selection(rows, path)
    choices = selection.choices
    columns = {
        "shard": arrow.array([choice.shard for choice in choices], arrow.string()),
        "samples": arrow.array([choice.samples for choice in choices], arrow.int64()),
        "mark": arrow.array([choice.mark for choice in choices], arrow.string()),
        "kept": arrow.array([choice.kept for choice in choices], arrow.int64()),
        "keep": arrow.array([choice.keep for choice in choices], arrow.binary()),
    }
    version = _VERSION
    if any(choice.captions or choice.weights for choice in choices):
        version = _WITH_CHOICES
        columns |= {
            "caption": _lists(arrow, [choice.chosen() for choice in choices], arrow.int32()),
            "captions_of": arrow.array(
                [choice.captions_of if choice.captions else None for choice in choices],
                arrow.string(),
            ),
            "weight": _lists(arrow, [choice.weighted() for choice in choices], arrow.float32()),
        }
    table = arrow.table(columns).replace_schema_metadata(
        {
            _VERSION_KEY: version.encode(),
            _DIGEST_KEY: selection.digest.encode(),
            _MADE_KEY: json.dumps(made, sort_keys=True).encode(),
        }
    )
    buffer = io.BytesIO()
    parquet.write_table(table, buffer, compression="zstd")
    storage_of(path).write_atomic(path, buffer.getvalue())
    return selection.digest


def read_selection(path: str) -> Selection:
    """Read a selection.

    Args:
        path: of the file, a local one or in a store.

    Raises:
        ValueError: it is no selection, is damaged, or was written by another version; or pyarrow is
            not installed.
        OSError: it cannot be read.
    """
    arrow, parquet = _pyarrow(path)
    data = storage_of(path).read(path)
    try:
        table = parquet.read_table(io.BytesIO(data))
    except (arrow.ArrowException, OSError) as error:
        raise ValueError(f"selection {path} is no Parquet file: {_first_line(error)}") from None
    meta: Mapping[bytes, bytes] = table.schema.metadata or {}
    version = meta.get(_VERSION_KEY, b"").decode()
    if version not in (_VERSION, _WITH_CHOICES):
        what = "has no word of clipfast" if _VERSION_KEY not in meta else "is of another version"
        raise ValueError(
            f"selection {path} {what}: expected a file that python -m clipfast.curate select or "
            "clipfast.data.selection.write_selection has written"
        )
    expected = _COLUMNS if version == _VERSION else (*_COLUMNS, *_CHOICES)
    if sorted(table.column_names) != sorted(expected):
        raise ValueError(
            f"selection {path} has the columns {', '.join(table.column_names)}; expected "
            f"{', '.join(expected)}"
        )
    try:
        selection = Selection(_choices(table), path, meta.get(_MADE_KEY, b"").decode())
    except (ValueError, TypeError) as error:
        raise ValueError(f"selection {path} is damaged: {error}") from None
    if selection.digest.encode() != meta.get(_DIGEST_KEY):
        raise ValueError(
            f"selection {path} is damaged: its rows have not the digest that was written with them"
        )
    return selection


def _choices(table: Any) -> list[ShardChoice]:
    columns: list[Sequence[Any]] = [table.column(name).to_pylist() for name in _COLUMNS]
    if "caption" in table.column_names:
        columns.append(_bytes_of(table.column("caption"), "<i4"))
        columns.append([each or "" for each in table.column("captions_of").to_pylist()])
        columns.append(_bytes_of(table.column("weight"), "<f4"))
    else:
        columns += [[b""] * len(table), [""] * len(table), [b""] * len(table)]
    choices = []
    for shard, samples, mark, kept, keep, *more in zip(*columns, strict=True):
        choice = ShardChoice(shard, samples, mark, keep, *more)
        if choice.kept != kept:
            raise ValueError(f"{shard}: {choice.kept:,} bits are set, and it says {kept:,}")
        choices.append(choice)
    return choices


def _lists(arrow: Any, numbers: Sequence[np.ndarray | None], kind: Any) -> Any:
    """A column of lists, made of arrays: numbers of Python would take twenty times the memory."""
    ends = np.cumsum([0, *(0 if each is None else len(each) for each in numbers)])
    parts = [each for each in numbers if each is not None]
    flat = np.concatenate(parts) if parts else np.empty(0)
    return arrow.LargeListArray.from_arrays(
        arrow.array(ends, arrow.int64()),
        arrow.array(flat.astype(kind.to_pandas_dtype()), kind),
        mask=arrow.array([each is None for each in numbers], arrow.bool_()),
    )


def _bytes_of(column: Any, kind: str) -> list[bytes]:
    """The numbers of each list as bytes; b"" for null."""
    found = []
    for chunk in column.chunks:
        flat = chunk.values.to_numpy(zero_copy_only=False).astype(kind)
        ends = chunk.offsets.to_numpy()
        known = chunk.is_valid().to_numpy(zero_copy_only=False)
        for start, end, is_known in zip(ends[:-1], ends[1:], known, strict=True):
            found.append(flat[start:end].tobytes() if is_known else b"")
    return found


def _first_line(error: BaseException) -> str:
    return str(error).partition("\n")[0]


def _pyarrow(path: str) -> tuple[Any, Any]:
    """pyarrow and its Parquet module."""
    arrow = import_arrow(
        f"selection {path}: Parquet is read and written by pyarrow, which is not installed: "
        "pip install pyarrow"
    )
    return arrow, arrow.parquet
