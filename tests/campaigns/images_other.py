"""What else people feed: other formats of Pillow, and what is no picture."""

import random
import struct
import zlib
from collections.abc import Iterator

import numpy as np
from PIL import Image

from tests.campaigns.images_form import Made, colours, picture, saved, tiff_orientation


def others(chance: random.Random) -> Iterator[Made]:
    """All of them.

    Args:
        chance: fills what is only noise.
    """
    yield from _formats()
    yield from _deep()
    yield from _no_pictures(chance)


def _formats() -> Iterator[Made]:
    kind = "other formats"
    for mode in ("1", "L", "P", "RGB", "RGBA"):
        image = picture(mode)
        yield Made(kind, f"GIF, {mode}", saved(image, "GIF"))
        yield Made(kind, f"BMP, {mode}", saved(image, "BMP"))
        yield Made(kind, f"TIFF, {mode}", saved(image, "TIFF"))
    for mode in ("RGB", "RGBA", "L"):
        image = picture(mode)
        yield Made(kind, f"AVIF, {mode}", saved(image, "AVIF", quality=90))
        yield Made(kind, f"ICO, {mode}", saved(picture(mode, (40, 40)), "ICO", sizes=[(40, 40)]))
        yield Made(kind, f"JPEG 2000, {mode}", saved(image, "JPEG2000"))
    stream = saved(picture(), "JPEG2000", no_jp2=True)
    yield Made(kind, "JPEG 2000, stream alone", stream)
    for mode in ("1", "L", "RGB", "I;16"):
        image = _grey_16() if mode == "I;16" else picture(mode)
        yield Made(kind, f"PPM, {mode}", saved(image, "PPM"))
    for name in ("tiff_lzw", "tiff_deflate", "packbits", "jpeg", "group4"):
        image = picture("1" if name == "group4" else "RGB")
        yield Made(kind, f"TIFF, {name}", saved(image, "TIFF", compression=name))
    yield Made(kind, "TIFF, CMYK", saved(picture("CMYK"), "TIFF"))
    yield Made(kind, "TIFF, LAB", saved(picture("RGB").convert("LAB"), "TIFF"))
    yield Made(
        kind, "TIFF, pages", saved(picture(), "TIFF", save_all=True, append_images=[picture("L")])
    )
    yield Made(kind, "TIFF, turned", saved(picture(), "TIFF", tiffinfo={0x112: 6}))
    yield Made(
        kind, "AVIF, turned", saved(picture(), "AVIF", exif=b"Exif\0\0" + tiff_orientation(6))
    )
    more = [picture("L").convert("RGB")]
    yield Made(kind, "GIF, animated", saved(picture(), "GIF", save_all=True, append_images=more))
    yield Made(kind, "GIF, clear colour", saved(picture("P"), "GIF", transparency=3))
    yield Made(kind, "GIF, interlaced", saved(picture("P"), "GIF", interlace=1))
    yield Made(kind, "AVIF, animated", saved(picture(), "AVIF", save_all=True, append_images=more))
    yield Made(kind, "BMP, bottom at the top", _upside_down(saved(picture(), "BMP")))
    yield Made(kind, "BMP with alpha fields", saved(picture("RGBA"), "BMP"))
    yield Made(
        kind,
        "DIB in an ICO",
        saved(picture("RGBA", (32, 32)), "ICO", bitmap_format="bmp", sizes=[(32, 32)]),
    )
    yield Made(kind, "cut GIF", saved(picture(), "GIF")[:-200], refused="broken")
    yield Made(kind, "cut TIFF", saved(picture(), "TIFF")[:-200], refused="broken|TIFF")
    yield Made(kind, "cut BMP", saved(picture(), "BMP")[:-200], refused="broken|truncated")
    yield Made(kind, "cut AVIF", saved(picture(), "AVIF")[:-99], refused="AVIF|broken")
    yield Made(
        kind, "cut JPEG 2000", saved(picture(), "JPEG2000")[:120], refused="JPEG 2000|broken"
    )
    yield Made(kind, "EPS", saved(picture(), "EPS"), refused="PostScript")
    yield Made(kind, "PDF", saved(picture(), "PDF"), refused="PDF")
    yield Made(kind, "TGA", saved(picture(), "TGA"), refused="no format that is read")


def _grey_16() -> Image.Image:
    return Image.fromarray(colours(levels=65536)[..., 0].astype(np.uint16))


def _upside_down(data: bytes) -> bytes:
    """A negative height: rows from the top."""
    return data[:22] + struct.pack("<i", -struct.unpack_from("<i", data, 22)[0]) + data[26:]


def _deep() -> Iterator[Made]:
    kind = "other depths"
    grey = colours(levels=65536)[..., 0]
    yield Made(kind, "TIFF, 16 bits", saved(_grey_16(), "TIFF"), truth=_thrice(grey / 257))
    integers = Image.fromarray(grey.astype(np.int32))
    yield Made(kind, "TIFF, 32 bits within 16", saved(integers, "TIFF"), truth=_thrice(grey / 257))
    beyond = Image.fromarray((grey * 3).astype(np.int32))
    yield Made(kind, "TIFF, 32 bits", saved(beyond, "TIFF"), refused="exceeds 16 bits")
    floats = Image.fromarray((grey / 65536).astype(np.float32))
    yield Made(kind, "TIFF, floats", saved(floats, "TIFF"), refused="floats")
    yield Made(kind, "JPEG 2000, 16 bits", saved(_grey_16(), "JPEG2000"), truth=_thrice(grey / 257))


def _thrice(grey: np.ndarray) -> np.ndarray:
    return np.repeat(grey[..., None], 3, -1)


def _no_pictures(chance: random.Random) -> Iterator[Made]:
    kind = "no pictures"
    pointer = (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 12345\n"
    )
    for name, data, reason in (
        ("nothing", b"", "0 bytes"),
        ("a byte", b"\xff", "no format that is read"),
        ("zeros", bytes(5000), "5,000 zero bytes"),
        ("noise", chance.randbytes(5000), "no format that is read"),
        ("text", b"this is a text file", "no format that is read"),
        ("HTML", b"<!DOCTYPE html><html><body>404 Not Found</body></html>", "HTML page"),
        ("HTML, upper case", b"\r\n<HTML><HEAD><TITLE>Forbidden", "HTML page"),
        ("XML", b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", "XML"),
        ("SVG", b'<svg xmlns="http://www.w3.org/2000/svg"/>', "SVG"),
        (
            "SVG in XML",
            b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"/>',
            "SVG|XML",
        ),
        ("JSON", b'{"error": "not found"}', "JSON"),
        ("Git LFS pointer", pointer, "Git LFS pointer"),
        ("gzip", zlib.compress(b"x" * 99, wbits=31), "gzip"),
        ("zip", b"PK\x03\x04" + bytes(30), "zip"),
        ("HEIC", b"\0\0\0\x18ftypheic" + bytes(99), "HEIC"),
        ("MP4", b"\0\0\0\x18ftypisom" + bytes(99), "isom"),
        ("JPEG XL", b"\xff\x0a" + bytes(99), "JPEG XL"),
        ("PSD", b"8BPS\0\1" + bytes(99), "Photoshop"),
        (
            "base64 of a JPEG",
            b"data:image/jpeg;base64,/9j/4AAQSkZJRgABAQ",
            "no format that is read",
        ),
        ("broken AVIF", b"\0\0\0\x1cftypavif" + bytes(99), "AVIF"),
        ("start of a JPEG", b"\xff\xd8", "beginning of an image"),
        ("start of a PNG", b"\x89PNG\r\n", "beginning of an image"),
    ):
        yield Made(kind, name, data, refused=reason)
    for size, reason in (
        ((1, 1), "a side is shorter"),
        ((1, 40), "a side is shorter"),
        ((4, 200), "sides differ"),
    ):
        for form in ("JPEG", "PNG", "GIF", "BMP"):
            data = saved(Image.new("RGB", size), form)
            yield Made(kind, f"{form} of {size[0]} x {size[1]}", data, refused=reason)
