"""Walk the headers of a tar without reading its members.

Python's tarfile builds an object of twenty fields per member; a shard of 10,000 samples needs only
name, offset and size. Headers are read one by one rather than through a memory map, so that an I/O
error of a network file system is an OSError and not a SIGBUS.
"""

from collections.abc import Iterator

from clipfast.data.storage import Reader, storage_of

BLOCK = 512

_REGULAR = frozenset((b"0", b"\0", b"7"))
# Links, devices, folders and pipes carry no data, whatever their size field says.
_WITHOUT_DATA = frozenset((b"1", b"2", b"3", b"4", b"5", b"6"))
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
_BLANK = bytes(BLOCK)


def read_exactly(reader: Reader, offset: int, size: int, name: str) -> bytes:
    """Read exactly `size` bytes at `offset`.

    Args:
        reader: what to read from.
        offset: first byte.
        size: number of bytes.
        name: path of what is read, for the message.

    Raises:
        ValueError: it ends before.
    """
    data = reader.read_at(offset, size)
    if len(data) < size:
        raise ValueError(
            f"{name!r} ends at byte {offset + len(data):,}, but {size:,} bytes were expected "
            f"at {offset:,}; it was cut or replaced: fetch it again and make its index anew"
        )
    return data


def _text(field: bytes) -> str:
    return field.split(b"\0", 1)[0].decode("utf-8", "surrogateescape")


def _number(field: bytes) -> int:
    """A tar number: octal text, or base 256 when the first bit is set."""
    if field[0] & 0x80:
        return int.from_bytes(field, "big") - (1 << (8 * len(field) - 1))
    return int(field.split(b"\0", 1)[0].strip() or b"0", 8)


def _valid(header: bytes) -> bool:
    """Whether the header's checksum holds (its own field counts as eight spaces)."""
    try:
        stored = _number(header[148:156])
    except ValueError:
        return False
    return sum(header) - sum(header[148:156]) + 256 == stored


def _pax_records(data: bytes) -> dict[str, str]:
    """Records ``<length> <key>=<value>\\n`` of a pax header."""
    records = {}
    at = 0
    while at < len(data) and data[at] != 0:
        space = data.index(b" ", at)
        length = int(data[at:space])
        if length <= space - at:
            raise ValueError("record of no length")
        key, _, value = data[space + 1 : at + length - 1].partition(b"=")
        records[key.decode("utf-8", "surrogateescape")] = value.decode("utf-8", "surrogateescape")
        at += length
    return records


def _refuse(shard: str, why: str) -> ValueError:
    return ValueError(f"shard {shard!r} {why}; fetch or pack it again")


def _check_start(shard: str, reader: Reader, size: int) -> None:
    if size == 0:
        raise _refuse(shard, "is a zero-byte file")
    start = reader.read_at(0, BLOCK)
    for magic, kind in _COMPRESSED.items():
        if start.startswith(magic):
            raise ValueError(
                f"shard {shard!r} is compressed ({kind}), which has no random access; decompress "
                "it to a plain tar"
            )
    if start == _BLANK[: len(start)]:
        raise _refuse(shard, "is an empty tar")
    if size < BLOCK:
        raise _refuse(shard, f"is no tar: it has {size} bytes")


def _name(header: bytes) -> str:
    name = _text(header[:100])
    # The prefix field is POSIX ustar's; GNU's variant keeps times there.
    if header[257:263] == b"ustar\0":
        prefix = _text(header[345:500])
        return f"{prefix}/{name}" if prefix else name
    return name


def walk(shard: str) -> Iterator[tuple[str, int, int]]:
    """Yield (name, offset of the data, size) of every regular file of a tar, in order.

    Reads ustar, GNU (long names, base-256 sizes) and pax headers.

    Args:
        shard: path of a plain tar.

    Raises:
        ValueError: the file is empty, truncated, compressed, sparse, or no tar.
    """
    with storage_of(shard).open(shard) as reader:
        yield from _walk(shard, reader, reader.size())


def _walk(shard: str, reader: Reader, end: int) -> Iterator[tuple[str, int, int]]:
    _check_start(shard, reader, end)
    at = 0
    common: dict[str, str] = {}
    extra: dict[str, str] = {}
    while at < end:
        header = reader.read_at(at, BLOCK)
        if header == _BLANK:
            return
        if len(header) < BLOCK:
            raise _refuse(shard, f"is truncated: it ends within the header at byte {at:,}")
        if not _valid(header):
            what = "is no tar" if at == 0 else "is damaged"
            raise _refuse(shard, f"{what}: no valid header at byte {at:,}")
        kind = header[156:157]
        records = {**common, **extra}
        size = int(records["size"]) if "size" in records else _number(header[124:136])
        data, at = at + BLOCK, at + BLOCK
        if kind not in _WITHOUT_DATA:
            at += -(-size // BLOCK) * BLOCK
            if at > end:
                raise _refuse(shard, f"is truncated: a member reaches to byte {at:,} of {end:,}")
        if kind in (b"x", b"g", b"L", b"X"):
            body = read_exactly(reader, data, size, shard)
            try:
                new = {"path": _text(body)} if kind == b"L" else _pax_records(body)
            except ValueError:
                raise _refuse(shard, f"is damaged: bad pax header at byte {data:,}") from None
            (common if kind == b"g" else extra).update(new)
            continue
        if kind == b"K":
            continue
        if kind == b"S" or any(key.startswith("GNU.sparse.") for key in records):
            raise ValueError(f"shard {shard!r} holds a sparse file; pack it without --sparse")
        name = records.get("path") or _name(header)
        if kind in _REGULAR and not name.endswith("/"):
            yield name, data, size
        extra = {}


def check_header(reader: Reader, offset: int, size: int) -> bool:
    """Whether a tar header lies before `offset` and announces `size` bytes.

    A size above 8 GiB may stand in a pax record instead; members of 2 GiB and more are refused
    earlier, so the header's own field decides.
    """
    header = reader.read_at(offset - BLOCK, BLOCK)
    return len(header) == BLOCK and _valid(header) and _number(header[124:136]) == size


def tar_header(name: str, size: int) -> bytes:
    """A ustar header for a regular file: mode 644, owner 0, time 0, so that bytes repeat.

    Args:
        name: at most 100 bytes.
        size: bytes of the member, under 8 GiB.
    """
    encoded = name.encode("utf-8", "surrogateescape")
    assert len(encoded) <= 100, name
    assert 0 <= size < 8**11, size
    header = bytearray(BLOCK)
    header[: len(encoded)] = encoded
    header[100:124] = b"0000644\0" + b"0000000\0" * 2
    header[124:136] = b"%011o\0" % size
    header[136:148] = b"%011o\0" % 0
    header[148:156] = b" " * 8
    header[156:157] = b"0"
    header[257:265] = b"ustar\00000"
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header)
