"""The index of a shard: which samples it holds, and where, one line per sample.

``X.idx`` lies beside ``X.tar``. Its form is the text format v1.2 that DALI's webdataset reader
takes. A line is ``ext offset size name`` for the image and again for the caption.
"""

import re
import urllib.parse
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from clipfast.data.fields import FIELDS, Entry, Fields
from clipfast.data.storage import Reader, storage_of
from clipfast.data.storage.paths import split_extension
from clipfast.data.tarheader import BLOCK, size_of, valid

INDEX_VERSION = "v1.2"
INDEX_COMMAND = "python -m clipfast.data.index"
# A first line is a version and a number.
_FIRST_LINE = 64


@dataclass(frozen=True, eq=False)
class Columns:
    """The numbers of an index; see `clipfast.data.table.Table`."""

    image_offset: np.ndarray
    image_size: np.ndarray
    caption_offset: np.ndarray
    caption_size: np.ndarray
    extension: np.ndarray


def index_path(shard: str) -> str:
    """Path of the index that belongs to `shard`: ``X.idx`` for ``X.tar``."""
    return split_extension(shard)[0] + ".idx"


def has_index(shard: str) -> bool:
    """Whether `shard` has an index beside it (its content is checked by `read_table`)."""
    return storage_of(shard).is_file(index_path(shard))


def _stale(shard: str, why: str) -> ValueError:
    return ValueError(
        f"index {index_path(shard)!r} does not fit its shard: {why}; make it anew with "
        f"'{INDEX_COMMAND} {shard} --force', or delete it to have the shard scanned"
    )


def read_keys(shard: str, fields: Fields = FIELDS) -> list[str]:
    """Keys of all samples of an index, in order."""
    lines = storage_of(shard).read(index_path(shard)).split(b"\n")[1:]
    return [_key_of_line(line, fields) for line in lines if line.strip()]


def read_count(shard: str) -> int:
    """Number of samples that the first line of an index announces."""
    start = storage_of(shard).read_at(index_path(shard), 0, _FIRST_LINE)
    return _header_count(shard, start.partition(b"\n")[0])


def _key_of_line(line: bytes, fields: Fields) -> str:
    """Key of one index line: the name of its first member, up to the first dot."""
    name = urllib.parse.unquote(line.split(None, 4)[3].decode("utf-8", "surrogateescape"))
    parts = fields.split(name)
    return parts[0] if parts else name


def _header_count(shard: str, first_line: bytes) -> int:
    words = first_line.split()
    if len(words) != 2 or words[0] != INDEX_VERSION.encode() or not words[1].isdigit():
        raise _stale(
            shard, f"its first line is {first_line[:40]!r}, not '{INDEX_VERSION} <samples>'"
        )
    return int(words[1])


def _columns(shard: str, lines: list[bytes], fields: Fields) -> list[list[bytes]]:
    """Columns (extension, offset, size, offset, size) of image and caption of every line."""
    columns: list[list[bytes]] = [[], [], [], [], []]
    for number, line in enumerate(lines, 2):
        words = line.split()
        members = []
        if len(words) % 4 == 0:
            members = [
                (words[i].lower().decode("utf-8", "replace"), words[i : i + 3])
                for i in range(0, len(words), 4)
            ]
        image, caption = fields.pick(members)
        if image is None or caption is None:
            raise _stale(shard, f"line {number} does not hold an image and a caption")
        words = [image[0].encode(), *image[1][1:], *caption[1][1:]]
        for column, word in zip(columns, words, strict=True):
            column.append(word)
    return columns


def read_columns(shard: str, fields: Fields = FIELDS) -> Columns:
    """Where the samples of an index lie.

    Args:
        shard: path of the tar that the index belongs to.
        fields: which members of a line are image and caption.

    Raises:
        ValueError: the index does not fit its shard.
    """
    first_line, _, body = storage_of(shard).read(index_path(shard)).partition(b"\n")
    codes = {extension.encode(): code for code, extension in enumerate(fields.images)}
    n = _header_count(shard, first_line)
    words = body.split()
    # Lines of two members, as `write_index` makes them, are taken apart by slicing.
    if (
        len(words) == 8 * n
        and set(words[0::8]) <= codes.keys()
        and set(words[4::8]) <= {fields.caption.encode()}
    ):
        columns = [words[i::8] for i in (0, 1, 2, 5, 6)]
    else:
        lines = [line for line in body.split(b"\n") if line.strip()]
        if len(lines) != n:
            raise _stale(shard, f"it announces {n} samples and holds {len(lines)}")
        columns = _columns(shard, lines, fields)
    try:
        numbers = [np.array([int(word) for word in column], np.int64) for column in columns[1:]]
    except (ValueError, OverflowError):
        raise _stale(shard, "an offset or size is not a number") from None
    image_offset, image_size, caption_offset, caption_size = numbers
    _check_ranges(shard, [(image_offset, image_size), (caption_offset, caption_size)])
    return Columns(
        image_offset,
        image_size.astype(np.int32),
        caption_offset,
        caption_size.astype(np.int32),
        np.array([codes[word] for word in columns[0]], np.uint8),
    )


def _check_ranges(shard: str, ranges: Sequence[tuple[np.ndarray, np.ndarray]]) -> None:
    """Raise unless every range lies in the tar and the outermost ones follow a fitting header.

    Times are not compared: copying a data set or installing a package does not keep them.
    """
    with storage_of(shard).open(shard) as reader:
        tar_size = reader.size()
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
                if not _announced(reader, int(offset[i]), int(size[i])):
                    raise _stale(shard, f"no member of {size[i]:,} bytes begins at {offset[i]:,}")


def _announced(reader: Reader, offset: int, size: int) -> bool:
    """Whether a tar header lies before `offset` and announces `size` bytes.

    A size above 8 GiB may stand in a pax record instead; members of 2 GiB and more are refused
    earlier, so the header's own field decides.
    """
    header = reader.read_at(offset - BLOCK, BLOCK)
    try:
        return valid(header) and size_of(header) == size
    except ValueError:
        return False


def write_index(shard: str, entries: Iterable[Entry], fields: Fields = FIELDS) -> str:
    """Write the index of `shard` in one atomic step.

    White space and '%' in names are percent-encoded, because DALI separates the fields by white
    space.

    Args:
        shard: path of the tar.
        entries: the samples to keep, in order.
        fields: names the member that holds the caption.

    Returns:
        Path of the index.
    """
    lines = []
    for e in entries:
        key = re.sub(r"[\s%]", lambda m: urllib.parse.quote(m.group()), e.key)
        image, caption = fields.names(key, e.extension)
        lines.append(
            f"{e.extension} {e.image_offset} {e.image_size} {image} "
            f"{fields.caption} {e.caption_offset} {e.caption_size} {caption}\n"
        )
    text = f"{INDEX_VERSION} {len(lines)}\n" + "".join(lines)
    path = index_path(shard)
    storage_of(path).write_atomic(path, text.encode("utf-8", "surrogateescape"))
    return path
