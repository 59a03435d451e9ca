"""Which images the decoder reads as Pillow does, told by their headers, and their sizes.

The list is short on purpose: the JPEG, PNG and WebP that cameras, browsers and image libraries
write. Whatever is not on it goes through Pillow (``clipfast.data.prepare``), which costs time and
is always right.
"""

import re
import struct
import zlib

_PNG = b"\x89PNG\r\n\x1a\n"
_SHORT = struct.Struct(">H")
_CHUNK = struct.Struct(">I4s")
_FRAME = struct.Struct(">BHHB")

# Baseline, extended and progressive Huffman coding.
_JPEG_FRAMES = (0xC0, 0xC1, 0xC2)
_XMP = b"http://ns.adobe.com/xap/1.0/\0"
_XMP_ORIENTATION = re.compile(rb'tiff:Orientation(?:="|>)([0-9])')
_ORIENTATION = 0x112
# Bytes of a value, by TIFF's number of its type.
_TIFF_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4}
# Sampling of the luma, beside chroma of 1 x 1: 4:4:4, 4:2:2, 4:4:0, 4:2:0.
_SAMPLINGS = (0x11, 0x21, 0x12, 0x22)

# (bits, colour type): grey, RGB and palette, up to 8 bits.
_PNG_KINDS = {(1, 0), (2, 0), (4, 0), (8, 0), (8, 2), (1, 3), (2, 3), (4, 3), (8, 3)}
# Chunks that change the picture; others of lower case change no pixel, here or there.
_PNG_CHANGES = {b"tRNS", b"eXIf", b"acTL", b"fcTL", b"fdAT"}
# Texts that may turn it, by their keywords.
_PNG_TEXTS = {b"tEXt", b"zTXt", b"iTXt"}
_PNG_KEYWORDS = (b"XML:com.adobe.xmp", b"Raw profile type", b"exif", b"xmp")
_ANCILLARY = 0x20

_WEBP_CHUNK = struct.Struct("<4sI")
_WEBP_PROFILE = 0x20


def plain_size(encoded: bytes) -> tuple[int, int] | None:
    """The size of an image that the decoder reads as Pillow does; no pixel is decoded.

    Args:
        encoded: the whole file.

    Returns:
        Width and height, before any orientation; None for every other image, and for no image.
    """
    try:
        if encoded.startswith(b"\xff\xd8\xff"):
            return _jpeg(encoded)
        if encoded.startswith(_PNG):
            return _png(encoded)
        if encoded.startswith(b"RIFF") and encoded[8:12] == b"WEBP":
            return _webp(encoded)
    except (IndexError, struct.error):
        pass
    return None


def _jpeg(encoded: bytes) -> tuple[int, int] | None:
    """Walk the segments up to the first scan: whatever stands in between has its say."""
    at = 2
    frame = exif = None
    jfif = xmp_turns = False
    tables: set[int] = set()
    while True:
        if encoded[at] != 0xFF:
            return None
        marker = encoded[at + 1]
        start, at = at + 4, at + 2 + _SHORT.unpack_from(encoded, at + 2)[0]
        if marker == 0xDA:
            break
        if marker in (0xC4, 0xDB):
            tables.add(marker)
        elif marker == 0xE0:
            jfif = jfif or encoded.startswith(b"JFIF\0", start)
        elif marker == 0xE1:
            if encoded.startswith(b"Exif\0\0", start):
                if exif is not None:
                    return None
                exif = _turns(encoded[start + 6 : at])
                if exif is None:
                    return None
            elif encoded.startswith(_XMP, start):
                # The last one counts.
                said = _XMP_ORIENTATION.search(encoded, start, at)
                xmp_turns = said is not None and said[1] != b"1"
        elif marker == 0xEE:
            # 0 is RGB in a JPEG of three channels, where DALI may look for YCbCr.
            if encoded.startswith(b"Adobe", start) and encoded[start + 11] != 1:
                return None
        elif marker in _JPEG_FRAMES:
            if frame is not None:
                return None
            frame = encoded[start:at]
        elif marker < 0xD0 or marker == 0xFF:
            return None
    if frame is None or len(tables) < 2 or (xmp_turns and not exif):
        return None
    bits, height, width, channels = _FRAME.unpack_from(frame)
    size = width, height
    if bits != 8 or not width or not height:
        return None
    if channels == 1:
        return size if frame[7] == 0x11 else None
    ids, samplings = (frame[6], frame[9], frame[12]), (frame[7], frame[10], frame[13])
    if channels != 3 or len(frame) != 15 or not (jfif or ids == (1, 2, 3)):
        return None
    return size if samplings[0] in _SAMPLINGS and samplings[1:] == (0x11, 0x11) else None


def _turns(tiff: bytes) -> int | None:
    """Orientation of an EXIF block: 0 where it says none, None where Pillow must be asked."""
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(tiff[:4])
    if order is None:
        return None
    (first,) = struct.unpack_from(order + "I", tiff, 4)
    (count,) = struct.unpack_from(order + "H", tiff, first)
    entries = tiff[first + 2 : first + 2 + 12 * count]
    if len(entries) < 12 * count:
        return None
    found = 0
    for tag, kind, number, value, rest in struct.iter_unpack(order + "HHIHH", entries):
        length = number * _TIFF_SIZES.get(kind, 0)
        if length > 4:
            offset = value | rest << 16 if order == "<" else value << 16 | rest
            # Pillow stops reading at an entry that lies beyond the end.
            if offset + length > len(tiff):
                return None
        if tag == _ORIENTATION:
            if found or kind != 3 or number != 1 or not 1 <= value <= 8:
                return None
            found = value
    return found


def _png(encoded: bytes) -> tuple[int, int] | None:
    """Walk all chunks with their checksums: one that fails ends DALI's decoder and not Pillow's."""
    at = len(_PNG)
    size = None
    seen: set[bytes] = set()
    last = b""
    while last != b"IEND":
        length, kind = _CHUNK.unpack_from(encoded, at)
        end = at + 8 + length
        (checksum,) = struct.unpack_from(">I", encoded, end)
        if zlib.crc32(memoryview(encoded)[at + 4 : end]) != checksum:
            return None
        if kind == b"IDAT":
            if (last != b"IDAT" and b"IDAT" in seen) or not length:
                return None
        elif kind in seen and kind not in _PNG_TEXTS:
            return None
        elif kind == b"IHDR":
            width, height, bits, color, *ways = struct.unpack_from(">IIBBBBB", encoded, at + 8)
            if last or length != 13 or (bits, color) not in _PNG_KINDS:
                return None
            if not width or not height or ways not in ([0, 0, 0], [0, 0, 1]):
                return None
            size = (width, height)
            paletted = color == 3
        elif kind in _PNG_TEXTS:
            if encoded.startswith(_PNG_KEYWORDS, at + 8):
                return None
        elif kind == b"PLTE":
            if b"IDAT" in seen:
                return None
        elif kind in _PNG_CHANGES or not (kind[0] & _ANCILLARY or kind == b"IEND"):
            return None
        if not last and kind != b"IHDR":
            return None
        seen.add(kind)
        last, at = kind, end + 4
    if b"IDAT" not in seen or (paletted and b"PLTE" not in seen):
        return None
    return size


def _webp(encoded: bytes) -> tuple[int, int] | None:
    """One picture without alpha, alone or behind a header and a colour profile."""
    (size,) = struct.unpack_from("<I", encoded, 4)
    if size + 8 != len(encoded):
        return None
    kind, length = _WEBP_CHUNK.unpack_from(encoded, 12)
    if kind != b"VP8X":
        return _webp_picture(encoded, 12)
    if length != 10 or encoded[20] & ~_WEBP_PROFILE:
        return None
    width = int.from_bytes(encoded[24:27], "little") + 1
    height = int.from_bytes(encoded[27:30], "little") + 1
    at = 30
    kind, length = _WEBP_CHUNK.unpack_from(encoded, at)
    if kind == b"ICCP":
        at += 8 + length + length % 2
    return (width, height) if _webp_picture(encoded, at) == (width, height) else None


def _webp_picture(encoded: bytes, at: int) -> tuple[int, int] | None:
    """Its size, where it is the last chunk of the file."""
    kind, length = _WEBP_CHUNK.unpack_from(encoded, at)
    at += 8
    if at + length + length % 2 != len(encoded):
        return None
    if kind == b"VP8 ":
        if encoded[at] & 1 or encoded[at + 3 : at + 6] != b"\x9d\x01\x2a":
            return None
        width, height = struct.unpack_from("<HH", encoded, at + 6)
        return (width, height) if width < 1 << 14 and height < 1 << 14 else None
    if kind == b"VP8L" and encoded[at] == 0x2F:
        (bits,) = struct.unpack_from("<I", encoded, at + 1)
        # Bit 28 says that there is transparency; three bits of version follow.
        if bits >> 28 == 0:
            return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    return None
