"""WebPs in both forms, with chunks in any order."""

import random
import struct
from collections.abc import Iterator

from PIL import Image

from tests.campaigns.images_form import (
    Made,
    picture,
    saved,
    tiff_orientation,
    xmp_orientation,
)

_ANIMATION, _XMP, _EXIF, _ALPHA, _ICC = 2, 4, 8, 16, 32


def chunk(kind: bytes, body: bytes) -> bytes:
    """A chunk, padded to an even length."""
    return kind + struct.pack("<I", len(body)) + body + b"\0" * (len(body) % 2)


def riff(*chunks: bytes, length: int | None = None) -> bytes:
    """A WebP of chunks.

    Args:
        chunks: in order.
        length: said in the header, where it is not the true one.
    """
    body = b"WEBP" + b"".join(chunks)
    return b"RIFF" + struct.pack("<I", len(body) if length is None else length) + body


def parts(data: bytes) -> dict[bytes, bytes]:
    """The chunks of a WebP, by kind."""
    at, found = 12, {}
    while at + 8 <= len(data):
        kind, length = struct.unpack_from("<4sI", data, at)
        found[kind] = chunk(kind, data[at + 8 : at + 8 + length])
        at += 8 + length + length % 2
    return found


def extended(flags: int, size: tuple[int, int] = (56, 40)) -> bytes:
    """The chunk VP8X."""
    width, height = (struct.pack("<I", side - 1)[:3] for side in size)
    return chunk(b"VP8X", bytes([flags, 0, 0, 0]) + width + height)


def webps(chance: random.Random) -> Iterator[Made]:
    """All of them.

    Args:
        chance: chooses where files are cut.
    """
    yield from _plain()
    yield from _ordered()
    yield from _turned()
    yield from _damaged(chance)


def _plain() -> Iterator[Made]:
    kind = "WebP"
    for size in ((56, 40), (53, 37), (3, 3), (2, 8)):
        for mode in ("RGB", "RGBA", "L", "P"):
            for lossless in (False, True):
                image = picture(mode, size)
                name = f"{mode}, {size[0]} x {size[1]}" + ", lossless" * lossless
                yield Made(kind, name, saved(image, "WEBP", lossless=lossless, quality=90))
    opaque = picture()
    opaque.putalpha(255)
    for lossless in (False, True):
        yield Made(
            kind, f"opaque alpha, lossless {lossless}", saved(opaque, "WEBP", lossless=lossless)
        )
    yield Made(kind, "quality 0", saved(picture(), "WEBP", quality=0))
    exact = saved(picture("RGBA"), "WEBP", lossless=True, exact=True)
    yield Made(kind, "exact", exact)
    yield Made(kind, "near lossless", saved(picture(), "WEBP", lossless=True, quality=20))
    for mode in ("RGB", "RGBA"):
        more = [picture("L").convert(mode), picture(mode).transpose(Image.Transpose.ROTATE_180)]
        data = saved(picture(mode), "WEBP", save_all=True, append_images=more, lossless=True)
        yield Made(kind, f"animated, {mode}", data)
    small = riff(
        extended(_ANIMATION | _ALPHA),
        chunk(b"ANIM", struct.pack("<IH", 0xFF0000FF, 0)),
        chunk(
            b"ANMF",
            _place((4, 2), (24, 20)) + parts(saved(picture(size=(24, 20)), "WEBP"))[b"VP8 "],
        ),
    )
    yield Made(kind, "animated, first frame is a part", small)


def _place(corner: tuple[int, int], size: tuple[int, int]) -> bytes:
    numbers = (corner[0] // 2, corner[1] // 2, size[0] - 1, size[1] - 1, 100)
    return b"".join(struct.pack("<I", number)[:3] for number in numbers) + b"\0"


def _ordered() -> Iterator[Made]:
    kind = "WebP, chunks"
    lossy = parts(saved(picture(), "WEBP"))[b"VP8 "]
    whole = parts(saved(picture(), "WEBP", lossless=True))[b"VP8L"]
    alpha = parts(saved(picture("RGBA"), "WEBP", quality=90))
    exif = chunk(b"EXIF", tiff_orientation(1))
    profile = chunk(b"ICCP", b"profile" * 99)
    odd = chunk(b"aBcD", b"what")
    for name, data in (
        ("simple, lossy", riff(lossy)),
        ("simple, lossless", riff(whole)),
        ("extended, lossy", riff(extended(0), lossy)),
        ("extended, lossless", riff(extended(0), whole)),
        (
            "extended, lossless with alpha",
            riff(extended(_ALPHA), parts(saved(picture("RGBA"), "WEBP", lossless=True))[b"VP8L"]),
        ),
        ("alpha", riff(extended(_ALPHA), alpha[b"ALPH"], alpha[b"VP8 "])),
        ("alpha without its flag", riff(extended(0), alpha[b"ALPH"], alpha[b"VP8 "])),
        ("flag without alpha", riff(extended(_ALPHA), lossy)),
        ("ICC", riff(extended(_ICC), profile, lossy)),
        ("ICC behind the pixels", riff(extended(_ICC), lossy, profile)),
        ("ICC without its flag", riff(extended(0), profile, lossy)),
        ("EXIF before the pixels", riff(extended(_EXIF), exif, lossy)),
        ("unknown chunk first", riff(extended(0), odd, lossy)),
        ("unknown chunk behind", riff(extended(0), lossy, odd)),
        ("unknown chunk, alpha", riff(extended(_ALPHA), odd, alpha[b"ALPH"], alpha[b"VP8 "])),
        ("unknown chunk in between", riff(extended(_ALPHA), alpha[b"ALPH"], odd, alpha[b"VP8 "])),
        ("unknown chunk, simple", riff(lossy, odd)),
        ("unknown chunk before, simple", riff(odd, lossy)),
        ("unknown chunk of odd length", riff(extended(0), chunk(b"oddd", b"abc"), lossy)),
        ("EXIF without VP8X", riff(lossy, exif)),
        ("two pictures", riff(extended(0), lossy, whole)),
        ("VP8X twice", riff(extended(0), extended(0), lossy)),
        ("VP8X behind", riff(lossy, extended(0))),
        ("VP8X of another size", riff(extended(0, (60, 44)), lossy)),
        ("garbage behind", riff(lossy) + b"garbage" * 9),
        ("zeros behind", riff(lossy) + bytes(64)),
        ("extended, garbage behind", riff(extended(0), lossy) + b"garbage"),
        ("no padding at the end", riff(_unpadded(lossy))),
        ("length of 0", riff(lossy, length=0)),
        ("length too small", riff(lossy, length=40)),
        ("length too large", riff(lossy, length=99_999)),
        ("length odd", riff(lossy, length=len(riff(lossy)) - 9)),
        ("empty", riff()),
        ("no pixels", riff(extended(_EXIF), exif)),
    ):
        # The standard forbids some of these: refused with a reason, or read as Pillow reads it.
        yield Made(kind, name, data, refused="WebP that cannot be read|broken|DALI", either=True)


def _unpadded(body: bytes) -> bytes:
    (length,) = struct.unpack_from("<I", body, 4)
    return body[: 8 + length]


def _turned() -> Iterator[Made]:
    kind = "WebP, turned"
    lossy = parts(saved(picture(), "WEBP"))[b"VP8 "]
    for value in range(1, 9):
        body = tiff_orientation(value, "<" if value % 2 else ">")
        for name, head in (("", b""), (", with JPEG's header", b"Exif\0\0")):
            data = riff(extended(_EXIF), lossy, chunk(b"EXIF", head + body))
            yield Made(kind, f"EXIF {value}{name}", data)
    six = tiff_orientation(6)
    for name, chunks in (
        ("EXIF first", (extended(_EXIF), chunk(b"EXIF", six), lossy)),
        ("EXIF without its flag", (extended(0), lossy, chunk(b"EXIF", six))),
        (
            "EXIF twice",
            (extended(_EXIF), lossy, chunk(b"EXIF", six), chunk(b"EXIF", tiff_orientation(3))),
        ),
        ("EXIF of garbage", (extended(_EXIF), lossy, chunk(b"EXIF", b"garbage"))),
        ("EXIF, empty", (extended(_EXIF), lossy, chunk(b"EXIF", b""))),
        ("XMP", (extended(_XMP), lossy, chunk(b"XMP ", xmp_orientation(6)))),
        ("XMP first", (extended(_XMP), chunk(b"XMP ", xmp_orientation(6)), lossy)),
        (
            "XMP and EXIF",
            (
                extended(_XMP | _EXIF),
                lossy,
                chunk(b"EXIF", tiff_orientation(3)),
                chunk(b"XMP ", xmp_orientation(6)),
            ),
        ),
    ):
        yield Made(kind, name, riff(*chunks), refused="WebP that cannot be read", either=True)
    data = saved(picture("RGBA"), "WEBP", lossless=True, exif=b"Exif\0\0" + six)
    yield Made(kind, "alpha", data)


def _damaged(chance: random.Random) -> Iterator[Made]:
    kind = "WebP, damaged"
    for lossless in (False, True):
        whole = saved(picture(), "WEBP", lossless=lossless)
        for at in (11, 14, 18, 22, *sorted(chance.sample(range(40, len(whole) - 20), 2))):
            yield Made(
                kind, f"cut at {at}, lossless {lossless}", whole[:at], refused="cut off|RIFF"
            )
        flipped = bytearray(whole)
        flipped[chance.randrange(60, len(whole) - 9)] ^= 255
        yield Made(
            kind,
            f"a byte changed, lossless {lossless}",
            bytes(flipped),
            refused="broken|WebP that|DALI",
            either=True,
        )
    garbage = riff(chunk(b"VP8 ", b"garbage" * 9))
    yield Made(kind, "pixels of garbage", garbage, refused="could not create decoder")
    yield Made(
        kind,
        "other RIFF",
        b"RIFF" + struct.pack("<I", 40) + b"WAVEfmt " + bytes(32),
        refused="a RIFF file",
    )
    wide = saved(Image.new("RGB", (200, 4)), "WEBP")
    yield Made(kind, "a line", wide, refused="sides differ")
