"""Tars made by hand: headers that no tool writes, and members in any order."""

import tarfile

BLOCK = 512
END = bytes(2 * BLOCK)


def resum(header: bytes | bytearray, signed: bool = False) -> bytes:
    """A header with a checksum that fits what it holds."""
    summed = bytearray(header)
    summed[148:156] = b" " * 8
    total = sum(byte - 256 * (signed and byte > 127) for byte in summed)
    summed[148:156] = b"%06o\0 " % total
    return bytes(summed)


def header(
    name: str | bytes = "a.jpg", size: int = 0, kind: bytes = b"0", **fields: bytes
) -> bytes:
    """A header; `fields` replace bytes, by where they begin: ``at_124=b"-1"``."""
    info = tarfile.TarInfo("x")
    info.size = size
    made = bytearray(info.tobuf(tarfile.USTAR_FORMAT))
    made[:1] = b"\0"
    encoded = name.encode() if isinstance(name, str) else name
    made[: len(encoded)] = encoded
    made[156:157] = kind
    for where, value in fields.items():
        start = int(where.removeprefix("at_"))
        made[start : start + len(value)] = value
    return resum(made)


def padded(data: bytes) -> bytes:
    """Data, filled up to whole blocks."""
    return data + bytes(-len(data) % BLOCK)


def member(name: str | bytes, data: bytes = b"", kind: bytes = b"0", **fields: bytes) -> bytes:
    """A header and its data."""
    return header(name, len(data), kind, **fields) + padded(data)


def record(key: bytes, value: bytes) -> bytes:
    """A record of a pax header, with its own length in front."""
    rest = b" " + key + b"=" + value + b"\n"
    length = len(rest) + 1
    while len(b"%d" % length) + len(rest) != length:
        length += 1
    return b"%d" % length + rest


def pax(*records: bytes, kind: bytes = b"x") -> bytes:
    """A pax header with its records."""
    return member("PaxHeaders/x", b"".join(records), kind)


def pair(key: str, text: str = "a caption", image: bytes = b"image") -> bytes:
    """Image and caption of a key."""
    return member(f"{key}.jpg", image) + member(f"{key}.txt", text.encode())
