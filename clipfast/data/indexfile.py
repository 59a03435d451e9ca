"""The index of a shard: which samples it holds, and where, one line per sample.

``X.idx`` lies beside ``X.tar``. Its form is the text format v1.2 that DALI's webdataset reader
takes. A line is ``ext offset size name`` for the image and again for the caption. An index of ours
has a mark that tells whether it and its shard are what they were (`clipfast.data.indexmark`); one
of another program, or of an earlier version, is compared with the headers of the tar.
"""

import re
import shlex
import urllib.parse
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from clipfast.data.fields import FIELDS, Entry, Fields
from clipfast.data.indexmark import (
    Mark,
    digest_of_lines,
    make_mark,
    misfit,
    other_size,
    read_mark,
)
from clipfast.data.scan import sample_runs
from clipfast.storage import storage_of
from clipfast.storage.paths import split_extension

INDEX_VERSION = "v1.2"
INDEX_COMMAND = "python -m clipfast.data.index"
# A first line is a version, a number and a mark.
_FIRST_LINE = 128
_MOST_SAMPLES = 1 << 40

# Image and caption of one line: extension, offset, size and name of each, as they are written.
_Row = tuple[bytes, ...]


@dataclass(frozen=True, eq=False)
class Columns:
    """The numbers of an index; see `clipfast.data.table.Table`."""

    image_offset: np.ndarray
    image_size: np.ndarray
    caption_offset: np.ndarray
    caption_size: np.ndarray
    extension: np.ndarray
    caption: str
    mark: str


def index_path(shard: str) -> str:
    """Path of the index that belongs to `shard`: ``X.idx`` for ``X.tar``."""
    return split_extension(shard)[0] + ".idx"


def has_index(shard: str) -> bool:
    """Whether `shard` has an index beside it (its content is checked by `read_table`)."""
    return storage_of(shard).is_file(index_path(shard))


def _stale(shard: str, why: str) -> ValueError:
    return ValueError(
        f"index {index_path(shard)!r} does not fit its shard: {why}; make it anew with "
        f"'{INDEX_COMMAND} {shlex.quote(shard)} --force', or delete it to have the shard scanned"
    )


def read_keys(shard: str, fields: Fields = FIELDS) -> list[str]:
    """Keys of all samples of an index, in order.

    Raises:
        ValueError: it is no index.
    """
    count, _, body = _read(shard)
    columns = _columns(shard, count, body, fields)
    pairs = zip(columns[3], columns[0], strict=True)
    return [_key(name, extension.decode()) or "" for name, extension in pairs]


def read_count(shard: str, size: int | None = None) -> int:
    """Number of samples that the first line of an index announces.

    Args:
        shard: path of the tar.
        size: of the tar, where it is known.

    Raises:
        ValueError: it is no index, or the shard has another size than when it was indexed.
    """
    start = storage_of(shard).read_start(index_path(shard), _FIRST_LINE)
    count, mark = _first_line(shard, start.partition(b"\n")[0])
    # Before a run starts, and not when it meets the shard. The rest is compared by then.
    if mark is not None:
        _require_size(shard, size, mark)
    return count


def read_identity(shard: str, size: int | None = None) -> tuple[int, str]:
    """Number of samples of an index and the digest of its lines, from its first line if it has a
    mark.

    Args:
        shard: path of the tar.
        size: of the tar, where it is known.

    Raises:
        ValueError: as ``read_count``.
    """
    start = storage_of(shard).read_start(index_path(shard), _FIRST_LINE)
    count, mark = _first_line(shard, start.partition(b"\n")[0])
    if mark is None:
        count, _, body = _read(shard)
        return count, digest_of_lines(count, body)
    _require_size(shard, size, mark)
    return count, mark.lines


def _require_size(shard: str, size: int | None, mark: Mark) -> None:
    if why := other_size(storage_of(shard).size(shard) if size is None else size, mark):
        raise _stale(shard, why)


def _read(shard: str) -> tuple[int, Mark | None, bytes]:
    """Number of samples, mark and lines of an index."""
    first_line, _, body = storage_of(shard).read(index_path(shard)).partition(b"\n")
    return *_first_line(shard, first_line), body


def _first_line(shard: str, line: bytes) -> tuple[int, Mark | None]:
    words = line.split()
    if (
        len(words) not in (2, 3)
        or words[0] != INDEX_VERSION.encode()
        or not words[1].isdigit()
        or len(words[1]) > 20
    ):
        raise _stale(shard, f"its first line is {line[:40]!r}, not '{INDEX_VERSION} <samples>'")
    if int(words[1]) > _MOST_SAMPLES:
        raise _stale(shard, f"it announces {int(words[1]):,} samples")
    try:
        mark = read_mark(words[2]) if len(words) == 3 else None
    except ValueError as error:
        raise _stale(shard, str(error)) from None
    return int(words[1]), mark


def _rows(shard: str, lines: Sequence[bytes], fields: Fields) -> list[_Row]:
    """Image and caption of every line, whatever else stands in it."""
    found: list[list[tuple[str, list[bytes]]]] = []
    for line in lines:
        words = line.split()
        members = []
        if len(words) % 4 == 0:
            members = [
                (words[i].lower().decode("utf-8", "replace"), words[i + 1 : i + 4])
                for i in range(0, len(words), 4)
            ]
        found.append(members)
    extension = fields.caption_of(found)
    rows = []
    for number, members in enumerate(found, 2):
        image, caption = fields.pick(members, extension)
        if image is not None and caption is None and fields.elsewhere:
            rows.append((image[0].encode(), *image[1], b"", b"0", b"0", b""))
            continue
        if image is None or caption is None:
            raise _stale(
                shard,
                f"line {number} does not hold an image and a caption "
                f"({' or '.join(fields.captions)}, as --captions says)",
            )
        rows.append((image[0].encode(), *image[1], caption[0].encode(), *caption[1]))
    return rows


def _key(name: bytes, extension: str) -> str | None:
    """Key of a member that an index names; None where it has another extension."""
    text = urllib.parse.unquote(name.decode("utf-8", "surrogateescape"))
    end = len(text) - len(extension) - 1
    return text[:end] if text[end:].lower() == f".{extension}" else None


def check_index(shard: str, fields: Fields = FIELDS) -> int:
    """Number of samples of an index that fits its shard.

    Raises:
        ValueError: it does not fit.
    """
    count, mark, body = _read(shard)
    if mark is None:
        return len(read_columns(shard, fields).extension)
    if why := misfit(shard, count, body, mark):
        raise _stale(shard, why)
    return count


def read_columns(shard: str, fields: Fields = FIELDS) -> Columns:
    """Where the samples of an index lie.

    Args:
        shard: path of the tar that the index belongs to.
        fields: which members of a line are image and caption.

    Raises:
        ValueError: the index does not fit its shard.
    """
    count, mark, body = _read(shard)
    if mark is not None and (why := misfit(shard, count, body, mark)):
        raise _stale(shard, why)
    columns = _columns(shard, count, body, fields)
    for column in (columns[i] for i in (1, 2, 5, 6)):
        if column and not b"".join(column).isdigit():
            raise _stale(shard, "an offset or size is not a number")
    try:
        numbers = [np.array([int(w) for w in columns[i]], np.int64) for i in (1, 2, 5, 6)]
    except (ValueError, OverflowError):
        raise _stale(shard, "an offset or size is no number below 2^63") from None
    image_offset, image_size, caption_offset, caption_size = numbers
    for size in (image_size, caption_size):
        if (size > np.iinfo(np.int32).max).any():
            raise _stale(shard, "a member's size is above 2 GiB")
    if mark is None:
        _compare(shard, columns, fields)
    codes = {extension.encode(): code for code, extension in enumerate(fields.images)}
    return Columns(
        image_offset,
        image_size.astype(np.int32),
        caption_offset,
        caption_size.astype(np.int32),
        np.array([codes[word] for word in columns[0]], np.uint8),
        next(filter(None, columns[4]), fields.caption_extensions[0].encode()).decode(),
        mark.lines if mark is not None else digest_of_lines(count, body),
    )


def _columns(shard: str, count: int, body: bytes, fields: Fields) -> Sequence[Sequence[bytes]]:
    """The columns of `_Row`."""
    words = body.split()
    # Lines of two members, as `write_index` makes them, are taken apart by slicing.
    captions = set(words[4::8])
    if (
        len(words) == 8 * count
        and set(words[0::8]) <= {extension.encode() for extension in fields.images}
        and len(captions) <= 1
        and captions <= {extension.encode() for extension in fields.caption_extensions}
    ):
        return [words[i::8] for i in range(8)]
    lines = [line for line in body.split(b"\n") if line.strip()]
    if len(lines) != count:
        raise _stale(shard, f"it announces {count:,} samples and holds {len(lines):,}")
    return list(zip(*_rows(shard, lines, fields), strict=True)) or [[]] * 8


def _compare(shard: str, columns: Sequence[Sequence[bytes]], fields: Fields) -> None:
    """Raise unless each line names two members of one sample that lie where it says, once."""
    # A member of a hard link is in several samples.
    present: dict[tuple[str, str, int, int], set[int]] = {}
    groups = ((key, members) for key, run in sample_runs(shard, fields) for members in run)
    for number, (key, members) in enumerate(groups):
        for member in members:
            present.setdefault((key, *member), set()).add(number)
    seen: dict[tuple[bytes, ...], int] = {}
    for line, row in enumerate(zip(*columns, strict=True), 2):
        samples = []
        for extension, offset, size, name in (row[:4], row[4:]):
            kind = extension.decode()
            if not kind:
                continue
            own = _key(name, kind)
            at = present.get((own or "", kind, int(offset), int(size)), set())
            if not at or own is None:
                raise _stale(
                    shard,
                    f"line {line}: no member {name.decode('utf-8', 'replace')!r} of {int(size):,} "
                    f"bytes begins at {int(offset):,}",
                )
            samples.append(at)
        if not set.intersection(*samples):
            raise _stale(shard, f"line {line} pairs members of two samples")
        if row in seen:
            raise _stale(shard, f"line {line} repeats line {seen[row]}")
        seen[row] = line


def write_index(shard: str, entries: Iterable[Entry], fields: Fields = FIELDS) -> str:
    """Write the index of `shard` in one atomic step.

    Args:
        shard: path of the tar.
        entries: the samples to keep, in order.
        fields: names of the members.

    Returns:
        Path of the index.
    """
    count, body = lines_of(entries, fields)
    mark = make_mark(shard, count, body)
    path = index_path(shard)
    first = f"{INDEX_VERSION} {count} {mark.word()}\n".encode()
    storage_of(path).write_atomic(path, first + body)
    return path


def lines_of(entries: Iterable[Entry], fields: Fields = FIELDS) -> tuple[int, bytes]:
    """How many samples an index of these has, and its lines.

    White space, control characters and '%' in names are percent-encoded, because DALI separates the
    fields by white space.

    Args:
        entries: the samples, in order.
        fields: names of the members.
    """
    lines = []
    for e in entries:
        key = re.sub(r"[\s%\x00-\x1f\x7f-\x9f]", lambda m: urllib.parse.quote(m.group()), e.key)
        image, caption = fields.names(key, e.extension, e.caption)
        line = f"{e.extension} {e.image_offset} {e.image_size} {image}"
        if e.caption:
            line += f" {e.caption} {e.caption_offset} {e.caption_size} {caption}"
        lines.append(line + "\n")
    return len(lines), "".join(lines).encode("utf-8", "surrogateescape")
