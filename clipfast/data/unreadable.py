"""Why an image cannot be opened, in words that are true: found by walking its bytes."""

import io
import struct
import zlib

from PIL import Image

from clipfast.data.fields import FORMATS

_JPEG = b"\xff\xd8\xff"
_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_BITS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}
_PNG_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
# Of interlaced pixels: first column and row, and the steps between.
_PASSES = (
    (0, 0, 8, 8),
    (4, 0, 8, 8),
    (0, 4, 4, 8),
    (2, 0, 4, 4),
    (0, 2, 2, 4),
    (1, 0, 2, 2),
    (0, 1, 1, 2),
)
# Kinds of frames that no JPEG on the web has, by the low half of their marker.
_JPEG_FRAMES = {
    0x3: "lossless coding",
    0x5: "hierarchical coding",
    0x6: "hierarchical coding",
    0x7: "hierarchical coding",
    0x9: "arithmetic coding",
    0xA: "arithmetic coding",
    0xB: "lossless, arithmetic coding",
    0xD: "hierarchical, arithmetic coding",
    0xE: "hierarchical, arithmetic coding",
    0xF: "hierarchical, arithmetic coding",
}
# What people store under the name of an image, by its first bytes.
_OTHERS = (
    (b"version https://git-lfs", "a Git LFS pointer; fetch the files with git lfs pull"),
    (b"<!doctype html", "an HTML page, not an image; download it again"),
    (b"<html", "an HTML page, not an image; download it again"),
    (b"<svg", "an SVG drawing, which has no pixels"),
    (b"<?xml", "XML"),
    (b"<", "like HTML or XML"),
    (b"{", "like JSON"),
    (b"%pdf", "a PDF"),
    (b"%!ps", "PostScript"),
    (b"pk\3\4", "a zip archive"),
    (b"\x1f\x8b", "gzip"),
    (b"8bps", "a Photoshop file"),
    (b"\xff\x0a", "a JPEG XL"),
    (b"\0\0\0\x0cjxl ", "a JPEG XL"),
    (b"\0\0\1\0", "an ICO"),
    (b"gif8", "a GIF"),
    (b"bm", "a BMP"),
    (b"ii*\0", "a TIFF"),
    (b"mm\0*", "a TIFF"),
    (b"\0\0\0\x0cjp  ", "a JPEG 2000"),
    (b"\xff\x4f\xff\x51", "a JPEG 2000"),
    (b"riff", "a RIFF file"),
)
_BRANDS = {b"heic": "HEIC", b"heix": "HEIC", b"mif1": "HEIF", b"avif": "AVIF", b"avis": "AVIF"}


def why_unreadable(data: bytes) -> str:
    """The reason why Pillow opens no image here, as "image is ...".

    Args:
        data: the whole file, which Pillow refused.
    """
    if data.startswith(_JPEG):
        return f"image is a JPEG that cannot be read: {_jpeg_fault(data) or _said('JPEG', data)}"
    if data.startswith(_PNG):
        return f"image is a PNG that cannot be read: {_png_fault(data) or _said('PNG', data)}"
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return f"image is a WebP that cannot be read: {_webp_fault(data) or _said('WEBP', data)}"
    return f"image is of no format that is read ({', '.join(FORMATS)}): it is {_looks_like(data)}"


def _said(form: str, data: bytes) -> str:
    """What Pillow's reader of a format says, which Pillow itself passes over."""
    try:
        Image.OPEN[form][0](io.BytesIO(data), "").close()
    except Exception as error:  # of many kinds
        return _one_line(error)
    return "its header is broken"


def _looks_like(data: bytes) -> str:
    if not data.strip(b"\0"):
        return f"{len(data):,} zero bytes"
    head = data[:64].lstrip(b" \t\r\n\xef\xbb\xbf").lower()
    if data[4:8] == b"ftyp":
        brand = _BRANDS.get(data[8:12])
        return f"{brand}, broken or of an unknown kind" if brand else _brand(data)
    for magic, kind in _OTHERS:
        if head.startswith(magic):
            return kind
    for magic, kind in ((_JPEG, "JPEG"), (_PNG, "PNG")):
        if (at := data.find(magic, 0, 1 << 16)) > 0:
            return f"a {kind} that begins at byte {at:,}; cut off what stands before it"
    if data[:2] == b"\xff\xd8" or _PNG.startswith(data[:8]):
        return f"{len(data):,} bytes, the beginning of an image"
    return f"{data[:8]!r}..."


def _brand(data: bytes) -> str:
    return f"of type {data[8:12].decode('latin-1')!r}"


def _jpeg_fault(data: bytes) -> str:
    """What is wrong in a JPEG's header; '' where it looks sound."""
    at = 2
    framed = False
    while at + 2 <= len(data):
        if data[at] != 0xFF:
            return f"no marker at byte {at}, where a segment ends"
        marker = data[at + 1]
        if marker in (0xFF, 0x01) or 0xD0 <= marker <= 0xD8:
            at += 1 if marker == 0xFF else 2
            continue
        if marker == 0xD9:
            return f"it ends at byte {at}, before any picture"
        if at + 4 > len(data):
            break
        (length,) = struct.unpack_from(">H", data, at + 2)
        if length < 2:
            return f"segment {marker:02X} at byte {at} has a length of {length}"
        if at + 2 + length > len(data):
            return f"it is cut off after {len(data):,} bytes, within its header"
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            framed = True
            if fault := _frame_fault(marker & 15, data[at + 4 : at + 2 + length]):
                return fault
        if marker == 0xDA:
            return "" if framed else "its header has no frame, and so no size"
        at += 2 + length
    return f"it is cut off after {len(data):,} bytes, within its header"


def _frame_fault(kind: int, frame: bytes) -> str:
    if len(frame) < 6:
        return "its frame is too short"
    bits, height, width, channels = struct.unpack_from(">BHHB", frame)
    if bits != 8:
        return f"{bits} bits per channel, where 8 are read"
    if kind in _JPEG_FRAMES:
        return f"{_JPEG_FRAMES[kind]}, which is not read"
    if not width or not height:
        return f"its size is {width} x {height}"
    if channels not in (1, 3, 4):
        return f"{channels} channels, where 1, 3 or 4 are read"
    return "its frame is too short" if len(frame) < 6 + 3 * channels else ""


def _png_fault(data: bytes) -> str:
    """What is wrong in a PNG's chunks; '' where they look sound."""
    at, kind, pixels = 8, b"", False
    while at + 8 <= len(data):
        first = not kind
        length, kind = struct.unpack_from(">I4s", data, at)
        name = kind.decode("latin-1")
        if not (kind.isalpha() and kind.isascii()):
            return f"no chunk at byte {at}, but {kind!r}"
        if first and kind != b"IHDR":
            return f"its first chunk is {name}, not IHDR"
        end = at + 8 + length
        if end + 4 > len(data):
            return f"it is cut off after {len(data):,} bytes, in chunk {name}"
        if kind == b"IHDR" and (fault := _header_fault(data[at + 8 : end])):
            return fault
        if zlib.crc32(data[at + 4 : end]) != struct.unpack_from(">I", data, end)[0]:
            return f"the checksum of chunk {name} at byte {at} is wrong"
        pixels = pixels or kind in (b"IDAT", b"fdAT")
        if kind == b"IEND":
            return "" if pixels else "it has no chunk IDAT, and so no pixels"
        at = end + 4
    return f"it is cut off after {len(data):,} bytes, without chunk IEND"


def pixel_fault(data: bytes) -> str:
    """What is wrong in the packed pixels of a PNG, which Pillow reads and DALI refuses.

    Args:
        data: the whole file, whose chunks are sound; any other format has no fault here.
    """
    if not data.startswith(_PNG) or _png_fault(data):
        return ""
    width, height, bits, color, *_, interlaced = struct.unpack_from(">IIBBBBB", data, 16)
    passes = _PASSES if interlaced else ((0, 0, 1, 1),)
    wanted = 0
    for x, y, across, down in passes:
        columns, rows = -((x - width) // across), -((y - height) // down)
        if columns > 0 and rows > 0:
            wanted += rows * (1 + (columns * bits * _PNG_CHANNELS[color] + 7) // 8)
    unpacker, found, at = zlib.decompressobj(), 0, 8
    try:
        while at < len(data) and not unpacker.eof:
            length, kind = struct.unpack_from(">I4s", data, at)
            if kind == b"IDAT":
                found += len(unpacker.decompress(data[at + 8 : at + 8 + length]))
            at += 12 + length
    except zlib.error as error:
        return f"its pixels do not unpack: {_one_line(error)}"
    return f"its pixels end after {found:,} of {wanted:,} bytes" if found < wanted else ""


def _header_fault(header: bytes) -> str:
    if len(header) < 13:
        return f"its IHDR has {len(header)} bytes, not 13"
    width, height, bits, color, packing, filtering, _ = struct.unpack_from(">IIBBBBB", header)
    if not width or not height:
        return f"its size is {width} x {height}"
    if bits not in _PNG_BITS.get(color, ()):
        return f"colour type {color} with {bits} bits, which does not exist"
    return f"unknown packing ({packing}) or filter ({filtering})" if packing or filtering else ""


def _webp_fault(data: bytes) -> str:
    size = struct.unpack_from("<I", data, 4)[0] + 8
    if size > len(data):
        return f"it is cut off after {len(data):,} of {size:,} bytes"
    at, found = 12, []
    while at + 8 <= size:
        kind, length = struct.unpack_from("<4sI", data, at)
        found.append(kind.decode("latin-1"))
        if at + 8 + length > size:
            return f"chunk {found[-1]!r} is longer than the file"
        at += 8 + length + length % 2
    names = ", ".join(map(repr, found)) or "nothing"
    if not {"VP8 ", "VP8L", "ANMF"} & set(found):
        return f"it holds no picture, but {names}"
    return "" if found in (["VP8 "], ["VP8L"]) else f"its chunks ({names}) make no picture"


def why_broken(data: bytes, error: BaseException) -> str:
    """The reason why Pillow opens an image and does not decode it.

    Args:
        data: the whole file.
        error: Pillow's.
    """
    fault = ""
    if data.startswith(_JPEG):
        fault = _jpeg_fault(data)
    elif data.startswith(_PNG):
        fault = _png_fault(data)
    elif data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        fault = _webp_fault(data)
    said = _one_line(error)
    if type(error) is ValueError and said.startswith("image "):
        return said
    return f"image is broken: {said} ({fault})" if fault else f"image is broken: {said}"


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())[:200]
    if isinstance(error, Image.DecompressionBombError):
        return f"decompression bomb: {text}"
    # Ours, and Pillow's own, are whole sentences.
    if type(error) is ValueError:
        return text
    return f"{type(error).__name__}: {text}"
