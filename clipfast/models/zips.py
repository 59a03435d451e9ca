"""Zip archives of tensors, looked through before anything in them is read."""

from __future__ import annotations

import io
import struct
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

START = b"PK\x03\x04"
# Programs and debug tables of TorchScript are compressed, tensors are not.
_LARGEST_RATIO = 8
_FREE_BYTES = 16 << 20
# An entry takes about 120 bytes of the directory, and ten times that once it is read.
_LARGEST_DIRECTORY = 4 << 20
_LOCAL_HEADER = struct.Struct("<4s22xHH")


class Entry(NamedTuple):
    """Where the bytes of an entry that is not compressed lie in its file.

    Attributes:
        start: the first.
        size: how many there are.
        checksum: CRC-32 of them; None where the file has none.
    """

    start: int
    size: int
    checksum: int | None = None


@contextmanager
def open_zip(path: Path) -> Iterator[zipfile.ZipFile]:
    """A zip whose directory has a size that a computer can hold.

    Args:
        path: an existing file.

    Raises:
        ValueError: its directory is damaged or too large.
    """
    with open(path, "rb") as file:
        try:
            archive = zipfile.ZipFile(_Limited(file, _LARGEST_DIRECTORY))
        except Exception as error:  # a damaged directory can raise nearly anything
            text = f"its zip directory is damaged ({error})"
            raise ValueError(f"cannot read {path}: {text}") from error
        with archive:
            yield archive


def entry_names(path: Path) -> list[str] | None:
    """The names in a zip whose entries are about as large as they claim.

    Args:
        path: an existing file.

    Returns:
        The names; None where this is no zip.

    Raises:
        ValueError: its directory is damaged; its entries claim many times the file's size, as in an
            archive that is made to fill the memory; a name leads out of a folder or comes twice.
    """
    with open(path, "rb") as file:
        if file.read(len(START)) != START:
            return None
    with open_zip(path) as archive:
        entries = archive.infolist()
    size, claimed = path.stat().st_size, sum(entry.file_size for entry in entries)
    if claimed > _LARGEST_RATIO * size + _FREE_BYTES:
        raise ValueError(
            f"refused to read {path}: it has {size:,} bytes, and its entries claim {claimed:,}"
        )
    names = [entry.filename for entry in entries]
    # Nothing is unpacked here, and an honest archive has no such name for others to unpack.
    leading_out = [n for n in names if n.startswith("/") or "\\" in n or ".." in n.split("/")]
    if leading_out:
        raise ValueError(f"refused to read {path}: it names files outside: {leading_out[0][:99]!r}")
    if len(set(names)) < len(names):
        raise ValueError(f"refused to read {path}: two of its entries have one name")
    return names


def small_entry(path: Path, end: str, limit: int) -> bytes | None:
    """The bytes of an entry, one more than `limit` at most.

    Args:
        path: a zip that `entry_names` let pass.
        end: how the entry's name ends.
        limit: bytes.

    Returns:
        The bytes; None where there is no such entry.

    Raises:
        ValueError: the entry is damaged.
    """
    with open_zip(path) as archive:
        name = next((n for n in archive.namelist() if n.endswith(end)), None)
        if name is None:
            return None
        try:
            return read_entry(archive, name, limit)
        except Exception as error:  # a damaged entry can raise nearly anything
            raise ValueError(f"cannot read {end.lstrip('/')} in {path}: {error}") from error


def read_entry(archive: zipfile.ZipFile, name: str, limit: int) -> bytes:
    """The bytes of an entry, one more than `limit` at most, whatever it claims to hold."""
    # Asked for all at once, a compressed entry is unpacked whole, however little it claims.
    parts, left = [], limit + 1
    info = archive.getinfo(name)
    if info.CRC == 0:
        # torch.serialization.set_crc32_options(False) leaves it out; zipfile checks none then.
        del info.CRC
    with archive.open(info) as entry:
        while left > 0 and (part := entry.read(min(left, 1 << 16))):
            parts.append(part)
            left -= len(part)
    return b"".join(parts)


def locate(archive: zipfile.ZipFile, name: str, file: io.BufferedReader) -> Entry:
    """Where the bytes of an entry lie.

    Args:
        archive: of `open_zip`.
        name: of the entry.
        file: the archive as a file.

    Raises:
        ValueError: there is none of that name, it is compressed or encrypted, or it does not lie
            within the file.
    """
    try:
        entry = archive.getinfo(name)
    except KeyError:
        raise ValueError(f"it has no entry {name[:99]!r}") from None
    if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1:
        raise ValueError(
            f"its entry {name[:99]!r} is compressed or encrypted, which torch.save never does: "
            "unpack it and pack it with `zip -0 -r`"
        )
    file.seek(entry.header_offset)
    header = file.read(_LOCAL_HEADER.size)
    if len(header) < _LOCAL_HEADER.size or not header.startswith(START):
        raise ValueError(f"its entry {name[:99]!r} does not lie where its directory says")
    _, name_length, extra_length = _LOCAL_HEADER.unpack(header)
    start = entry.header_offset + _LOCAL_HEADER.size + name_length + extra_length
    if start + entry.file_size > file.seek(0, io.SEEK_END):
        raise ValueError(f"its entry {name[:99]!r} ends behind the end of the file")
    return Entry(start, entry.file_size, entry.CRC or None)


class _Limited(io.RawIOBase):
    """A file of which at most so many bytes are read at a time."""

    def __init__(self, file: io.BufferedReader, limit: int) -> None:
        self._file, self._limit = file, limit

    def read(self, size: int = -1) -> bytes:
        if size > self._limit:
            raise ValueError(f"it would take {size:,} bytes, more than {self._limit:,}")
        return self._file.read(size)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True
