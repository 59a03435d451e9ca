"""Find webdataset shards and say where each sample lies in them.

A shard is a plain tar. What training needs of it is four numbers a sample: offset and size of the
image and of the caption. They come from the shard's index (``X.idx`` beside ``X.tar``, the text
format v1.2 that DALI's webdataset reader takes) or, without one, from a walk over tar headers that
reads 512 bytes a member. Bytes are then fetched with ``pread``: no tar stream, any order.
"""

import logging
import os
import re
import threading
import urllib.parse
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from clipfast.data.patterns import expand
from clipfast.data.tarwalk import BLOCK, check_header, read_bytes, walk

__all__ = [
    "CAPTION_EXTENSION",
    "IMAGE_EXTENSIONS",
    "Entry",
    "Sample",
    "ShardFiles",
    "Table",
    "count",
    "counts",
    "expand",
    "has_index",
    "index_path",
    "read_bytes",
    "read_table",
    "scan",
    "write_index",
]

IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp")
CAPTION_EXTENSION = "txt"
INDEX_VERSION = "v1.2"
INDEX_COMMAND = "python -m clipfast.data.index"

_EXTENSION_CODE = {ext: code for code, ext in enumerate(IMAGE_EXTENSIONS)}
_EXTENSION_CODE_BYTES = {ext.encode(): code for ext, code in _EXTENSION_CODE.items()}
# From this many shards on, scanning at each start costs minutes and is worth a warning.
_MANY_SCANS = 8

_log = logging.getLogger(__name__)


def index_path(shard: str) -> str:
    """Path of the index that belongs to `shard`: ``X.idx`` for ``X.tar``."""
    return os.path.splitext(shard)[0] + ".idx"


def has_index(shard: str) -> bool:
    """Whether `shard` has an index beside it (its content is checked by `read_table`)."""
    return os.path.isfile(index_path(shard))


@dataclass(frozen=True)
class Entry:
    """One training sample: where its image and its caption lie in the shard, in bytes.

    Attributes:
        key: member name up to the first dot of its basename.
        extension: image extension, lower case, one of `IMAGE_EXTENSIONS`.
        image_offset, image_size: byte range of the encoded image.
        caption_offset, caption_size: byte range of the UTF-8 caption.
    """

    key: str
    extension: str
    image_offset: int
    image_size: int
    caption_offset: int
    caption_size: int


@dataclass(frozen=True)
class Sample:
    """A group of adjacent members with one key, as scanned; `entry` is None when incomplete."""

    key: str
    entry: Entry | None
    problem: str = ""


@dataclass(frozen=True, eq=False)
class Table:
    """The samples of one shard, 25 bytes each; keys are read again when asked for.

    Attributes:
        shard: path of the tar.
        image_offset: [N] int64, bytes from the start of the tar.
        image_size: [N] int32, bytes.
        caption_offset: [N] int64.
        caption_size: [N] int32.
        extension: [N] uint8, position in `IMAGE_EXTENSIONS`.
        left_out: samples without image or caption that a scan met; 0 with an index.
    """

    shard: str
    image_offset: np.ndarray
    image_size: np.ndarray
    caption_offset: np.ndarray
    caption_size: np.ndarray
    extension: np.ndarray
    left_out: int = 0

    def __len__(self) -> int:
        return len(self.image_offset)

    def keys(self) -> list[str]:
        """Keys of all samples, in order. Reads the index or the tar headers again."""
        if has_index(self.shard):
            with open(index_path(self.shard), "rb") as file:
                lines = file.read().split(b"\n")[1:]
            return [_key_of_line(line) for line in lines if line.strip()]
        return [sample.key for sample in scan(self.shard) if sample.entry]

    def entry(self, i: int) -> Entry:
        """Sample `i` with its key; for messages and tests, not for the hot path."""
        return Entry(
            self.keys()[i],
            IMAGE_EXTENSIONS[self.extension[i]],
            int(self.image_offset[i]),
            int(self.image_size[i]),
            int(self.caption_offset[i]),
            int(self.caption_size[i]),
        )


def _split_name(name: str) -> tuple[str, str] | None:
    """Key and lower-case extension by webdataset's rule; None for hidden or dotless files."""
    dot = name.find(".", name.rfind("/") + 1)
    if dot < 0 or dot == name.rfind("/") + 1:
        return None
    return name[:dot], name[dot + 1 :].lower()


def _group(key: str, members: Sequence[tuple[str, int, int]]) -> Sample:
    """Make a sample of its members (extension, offset, size); the first of each kind counts."""
    image = next((m for m in members if m[0] in _EXTENSION_CODE), None)
    caption = next((m for m in members if m[0] == CAPTION_EXTENSION), None)
    if image and caption:
        return Sample(key, Entry(key, image[0], image[1], image[2], caption[1], caption[2]))
    has = ", ".join("." + m[0] for m in members)
    if image is None:
        wanted = "/".join(IMAGE_EXTENSIONS)
        return Sample(key, None, f"no image: expected a {wanted} member, found {has}")
    return Sample(key, None, f"no caption: expected a {CAPTION_EXTENSION} member, found {has}")


def scan(shard: str) -> Iterator[Sample]:
    """Walk the tar headers of `shard` and group its members into samples.

    The rule is webdataset's: the key is the path up to the first dot of the basename, the members
    of a sample are adjacent, hidden and dotless files are passed over.

    Args:
        shard: path of a plain tar.

    Yields:
        Every sample, complete or not, in the order of the tar.

    Raises:
        ValueError: the file is empty, truncated, compressed, or no tar.
    """
    key: str | None = None
    members: list[tuple[str, int, int]] = []
    for name, offset, size in walk(shard):
        parts = _split_name(name)
        if parts is None:
            continue
        if parts[0] != key and key is not None:
            yield _group(key, members)
            members = []
        key = parts[0]
        members.append((parts[1], offset, size))
    if key is not None:
        yield _group(key, members)


def _table(shard: str, rows: Sequence[Entry], left_out: int) -> Table:
    def column(name: str, dtype: type) -> np.ndarray:
        return np.fromiter((getattr(row, name) for row in rows), dtype, len(rows))

    return Table(
        shard,
        column("image_offset", np.int64),
        column("image_size", np.int32),
        column("caption_offset", np.int64),
        column("caption_size", np.int32),
        np.fromiter((_EXTENSION_CODE[row.extension] for row in rows), np.uint8, len(rows)),
        left_out,
    )


def _stale(shard: str, why: str) -> ValueError:
    return ValueError(
        f"index {index_path(shard)!r} does not fit its shard: {why}; make it anew with "
        f"'{INDEX_COMMAND} {shard} --force', or delete it to have the shard scanned"
    )


def _key_of_line(line: bytes) -> str:
    """Key of one index line: the name of its first member, up to the first dot."""
    name = urllib.parse.unquote(line.split(None, 4)[3].decode("utf-8", "surrogateescape"))
    parts = _split_name(name)
    return parts[0] if parts else name


def _header_count(shard: str, first_line: bytes) -> int:
    words = first_line.split()
    if len(words) != 2 or words[0] != INDEX_VERSION.encode() or not words[1].isdigit():
        raise _stale(
            shard, f"its first line is {first_line[:40]!r}, not '{INDEX_VERSION} <samples>'"
        )
    return int(words[1])


def _columns(shard: str, lines: list[bytes]) -> list[list[bytes]]:
    """Columns (extension, offset, size, offset, size) of image and caption of every line."""
    columns: list[list[bytes]] = [[], [], [], [], []]
    for number, line in enumerate(lines, 2):
        words = line.split()
        image = caption = None
        if len(words) % 4 == 0:
            for i in range(0, len(words), 4):
                extension = words[i].lower()
                if image is None and extension in _EXTENSION_CODE_BYTES:
                    image = [extension, words[i + 1], words[i + 2]]
                elif caption is None and extension == CAPTION_EXTENSION.encode():
                    caption = [words[i + 1], words[i + 2]]
        if image is None or caption is None:
            raise _stale(shard, f"line {number} does not hold an image and a caption")
        for column, word in zip(columns, image + caption, strict=True):
            column.append(word)
    return columns


def _read_index(shard: str) -> Table:
    with open(index_path(shard), "rb") as file:
        first_line, _, body = file.read().partition(b"\n")
    n = _header_count(shard, first_line)
    words = body.split()
    # Lines of two members, as `write_index` makes them, are taken apart by slicing.
    if (
        len(words) == 8 * n
        and set(words[0::8]) <= _EXTENSION_CODE_BYTES.keys()
        and set(words[4::8]) <= {CAPTION_EXTENSION.encode()}
    ):
        columns = [words[i::8] for i in (0, 1, 2, 5, 6)]
    else:
        lines = [line for line in body.split(b"\n") if line.strip()]
        if len(lines) != n:
            raise _stale(shard, f"it announces {n} samples and holds {len(lines)}")
        columns = _columns(shard, lines)
    try:
        numbers = [np.array([int(word) for word in column], np.int64) for column in columns[1:]]
    except (ValueError, OverflowError):
        raise _stale(shard, "an offset or size is not a number") from None
    image_offset, image_size, caption_offset, caption_size = numbers
    _check_ranges(shard, [(image_offset, image_size), (caption_offset, caption_size)])
    codes = np.array([_EXTENSION_CODE_BYTES[word] for word in columns[0]], np.uint8)
    return Table(
        shard,
        image_offset,
        image_size.astype(np.int32),
        caption_offset,
        caption_size.astype(np.int32),
        codes,
    )


def _check_ranges(shard: str, ranges: Sequence[tuple[np.ndarray, np.ndarray]]) -> None:
    """Raise unless every range lies in the tar and the outermost ones follow a fitting header.

    Times are not compared: copying a data set or installing a package does not keep them.
    """
    tar_size = os.path.getsize(shard)
    for offset, size in ranges:
        if not len(offset):
            continue
        if (size < 0).any() or (size > np.iinfo(np.int32).max).any():
            raise _stale(shard, "a member's size is negative or above 2 GiB")
        if (offset < BLOCK).any() or (offset % BLOCK).any():
            raise _stale(shard, f"an offset is not a positive multiple of {BLOCK}")
        end = int((offset + size).max())
        if end > tar_size:
            raise _stale(shard, f"it points to byte {end:,}, the tar has {tar_size:,}")
        for i in {0, len(offset) // 2, len(offset) - 1}:
            if not check_header(shard, int(offset[i]), int(size[i])):
                raise _stale(shard, f"no member of {size[i]:,} bytes begins at {offset[i]:,}")


def read_table(shard: str) -> Table:
    """Where the samples of `shard` lie: from its index if it has one, else from a scan.

    Args:
        shard: path of a plain tar.

    Returns:
        The table of complete samples; a scan logs how many incomplete ones it left out.

    Raises:
        ValueError: a tar that is empty, truncated, compressed or has no complete sample, or an
            index that does not fit it.
    """
    if has_index(shard):
        return _read_index(shard)
    samples = list(scan(shard))
    rows = [sample.entry for sample in samples if sample.entry]
    left_out = len(samples) - len(rows)
    if not rows:
        why = next((s.problem for s in samples), "it holds no file with an extension")
        raise ValueError(
            f"shard {shard!r} has no complete sample among {len(samples)} ({why}); each needs an "
            f"image ({', '.join(IMAGE_EXTENSIONS)}) and a .{CAPTION_EXTENSION} with one key, "
            "side by side"
        )
    if left_out:
        _log.warning("%s: %d samples without image or caption are left out", shard, left_out)
    return _table(shard, rows, left_out)


def count(shard: str) -> int:
    """Number of samples of `shard`: the first line of its index, or a scan. Equals len(table)."""
    if not has_index(shard):
        return len(read_table(shard))
    with open(index_path(shard), "rb") as file:
        return _header_count(shard, file.readline(64).rstrip(b"\n"))


def counts(shards: Sequence[str], threads: int = 16) -> np.ndarray:
    """Number of samples of every shard.

    Args:
        shards: paths of tars.
        threads: shards looked at together; the time is the file system's latency.

    Returns:
        [len(shards)] int64.
    """
    unindexed = sum(not has_index(shard) for shard in shards)
    if unindexed >= _MANY_SCANS:
        _log.warning(
            "%d of %d shards have no index, and are scanned at every start with their images "
            "unchecked; run once: %s <the same shards>",
            unindexed,
            len(shards),
            INDEX_COMMAND,
        )
    with ThreadPoolExecutor(max(1, min(threads, len(shards)))) as pool:
        return np.fromiter(pool.map(count, shards), np.int64, len(shards))


def write_index(shard: str, entries: Iterable[Entry]) -> str:
    """Write the index of `shard` (DALI webdataset index v1.2) in one atomic step.

    A line is ``ext offset size name`` for the image and again for the caption. White space and '%'
    in names are percent-encoded, because DALI separates the fields by white space.

    Args:
        shard: path of the tar.
        entries: the samples to keep, in order.

    Returns:
        Path of the index.
    """
    lines = []
    for e in entries:
        name = re.sub(r"[\s%]", lambda m: urllib.parse.quote(m.group()), e.key)
        lines.append(
            f"{e.extension} {e.image_offset} {e.image_size} {name}.{e.extension} "
            f"{CAPTION_EXTENSION} {e.caption_offset} {e.caption_size} {name}.{CAPTION_EXTENSION}\n"
        )
    text = f"{INDEX_VERSION} {len(lines)}\n" + "".join(lines)
    path = index_path(shard)
    partial = f"{path}.{os.getpid()}.partial"
    try:
        with open(partial, "wb") as file:
            file.write(text.encode("utf-8", "surrogateescape"))
        os.replace(partial, path)
    finally:
        if os.path.exists(partial):
            os.remove(partial)
    return path


class _OpenFile:
    """A descriptor that closes with its last reference, so eviction never cuts a running read."""

    __slots__ = ("fd",)

    def __init__(self, path: str) -> None:
        self.fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def __del__(self) -> None:
        if hasattr(self, "fd"):
            os.close(self.fd)


class ShardFiles:
    """Open shards, least recently used closed first; safe to share between threads and to pickle.

    Args:
        shards: paths, addressed by their position.
        max_open: descriptors kept; stay under the process limit (``ulimit -n``, often 1024).
    """

    def __init__(self, shards: Sequence[str], max_open: int = 128) -> None:
        if max_open < 1:
            raise ValueError(f"max_open must be at least 1, got {max_open}")
        self.shards = list(shards)
        self.max_open = max_open
        self._files: OrderedDict[int, _OpenFile] = OrderedDict()
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple:
        return (ShardFiles, (self.shards, self.max_open))

    def _file(self, shard_index: int) -> _OpenFile:
        with self._lock:
            file = self._files.get(shard_index)
            if file is not None:
                self._files.move_to_end(shard_index)
                return file
        # Opened outside the lock: on a network file system it takes milliseconds.
        file = _OpenFile(self.shards[shard_index])
        with self._lock:
            file = self._files.setdefault(shard_index, file)
            self._files.move_to_end(shard_index)
            while len(self._files) > self.max_open:
                self._files.popitem(last=False)
        return file

    def pread(self, shard_index: int, offset: int, size: int) -> bytes:
        """Read `size` bytes at `offset` of a shard.

        Raises:
            ValueError: the shard ends before, because it was cut or replaced after indexing.
        """
        file = self._file(shard_index)
        return read_bytes(file.fd, offset, size, name=self.shards[shard_index])

    def close(self) -> None:
        """Forget all descriptors; those in use close when their read is done."""
        with self._lock:
            self._files.clear()
