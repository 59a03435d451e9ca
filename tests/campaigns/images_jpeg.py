"""JPEGs of every oddity that can be written."""

import random
from collections.abc import Iterator

import numpy as np
from PIL import Image, ImageCms

from tests.campaigns.images_form import (
    Made,
    colours,
    picture,
    saved,
    tiff_orientation,
    xmp_orientation,
)
from tests.campaigns.jpeg_writer import JFIF, Writer, adobe, app, exif, segment, xmp, ycbcr

_YCC = ycbcr(colours())


def jpegs(chance: random.Random) -> Iterator[Made]:
    """All of them.

    Args:
        chance: chooses what is damaged.
    """
    yield from _colours()
    yield from _samplings()
    yield from _codings()
    yield from _segments()
    yield from _turned()
    yield from _damaged(chance)


def _colours() -> Iterator[Made]:
    kind = "JPEG, colours"
    rgb = colours()
    grey = picture("L")
    cmyk = np.concatenate([255 - rgb, rgb[..., :1] // 8], -1)
    ycck = np.concatenate([ycbcr(rgb), 255 - rgb[..., :1] // 8], -1)
    four = ((1, 1),) * 4
    yield Made(kind, "grey", saved(grey, "JPEG"))
    yield Made(kind, "RGB, Adobe 0", saved(picture(), "JPEG", keep_rgb=True))
    yield Made(kind, "CMYK of Pillow", saved(picture("CMYK"), "JPEG", quality=95))
    yield Made(kind, "CMYK, progressive", saved(picture("CMYK"), "JPEG", progressive=True))
    for name, segments, planes in (
        ("CMYK, no marker", b"", cmyk),
        ("CMYK, JFIF", JFIF, cmyk),
        ("CMYK, Adobe 0, inverted", adobe(0), 255 - cmyk),
        ("CMYK, Adobe 0, not inverted", adobe(0), cmyk),
        ("YCCK, Adobe 2", adobe(2), ycck),
        ("YCCK, JFIF and Adobe 2", JFIF + adobe(2), ycck),
        ("four channels, Adobe 1", adobe(1), ycck),
    ):
        data = Writer(four, (1, 2, 3, 4), segments=segments).write(planes)
        yield Made(kind, name, data)
    yield Made(
        kind,
        "YCCK, chroma of half",
        Writer(((2, 2), (1, 1), (1, 1), (2, 2)), (1, 2, 3, 4), segments=adobe(2)).write(ycck),
    )
    for name, segments, ids, planes in (
        ("RGB by ids", b"", (82, 71, 66), rgb),
        ("RGB, Adobe 0, ids 1 2 3", adobe(0), (1, 2, 3), rgb),
        ("RGB, JFIF and Adobe 0", JFIF + adobe(0), (1, 2, 3), rgb),
        ("RGB, Adobe 0 and JFIF", adobe(0) + JFIF, (1, 2, 3), rgb),
        ("YCbCr, no marker", b"", (1, 2, 3), ycbcr(rgb)),
        ("YCbCr, ids from 0", b"", (0, 1, 2), ycbcr(rgb)),
        ("YCbCr, ids from 0, JFIF", JFIF, (0, 1, 2), ycbcr(rgb)),
        ("YCbCr, odd ids", b"", (34, 35, 36), ycbcr(rgb)),
        ("YCbCr, Adobe 1", adobe(1), (1, 2, 3), ycbcr(rgb)),
        ("YCbCr, Adobe 1, ids R G B", adobe(1), (82, 71, 66), ycbcr(rgb)),
        ("YCbCr, Adobe 2", adobe(2), (1, 2, 3), ycbcr(rgb)),
        ("YCbCr, short Adobe", app(14, b"Adobe\0\x64"), (1, 2, 3), ycbcr(rgb)),
        ("YCbCr, JFIF after Adobe 1", adobe(1) + JFIF, (1, 2, 3), ycbcr(rgb)),
        ("JFIF, ids R G B", JFIF, (82, 71, 66), ycbcr(rgb)),
        ("no JFIF, but JFXX", app(0, b"JFXX\0\x10"), (1, 2, 3), ycbcr(rgb)),
    ):
        yield Made(kind, name, Writer(ids=ids, segments=segments).write(planes))
    luma = ycbcr(rgb)[..., :1]
    yield Made(kind, "grey, sampled 2 x 2", Writer(((2, 2),), (1,)).write(luma))
    yield Made(kind, "grey, odd id", Writer(((1, 1),), (77,), segments=b"").write(luma))
    yield Made(kind, "grey, Adobe 0", Writer(((1, 1),), (1,), segments=adobe(0)).write(luma))
    for channels in (2, 5):
        data = Writer(((1, 1),) * channels, range(1, 9)).write(np.repeat(luma, channels, -1))
        yield Made(kind, f"{channels} channels", data, refused=f"{channels} channels")


def _samplings() -> Iterator[Made]:
    kind = "JPEG, samplings"
    for number, name in enumerate(("4:4:4", "4:2:2", "4:2:0")):
        yield Made(kind, f"{name} of Pillow", saved(picture(), "JPEG", subsampling=number))
        odd = picture(size=(53, 37))
        yield Made(kind, f"{name}, odd size", saved(odd, "JPEG", subsampling=number))
    one = (1, 1)
    for luma, first, second in (
        ((1, 2), one, one),
        ((4, 1), one, one),
        ((1, 4), one, one),
        ((4, 2), one, one),
        ((2, 4), one, one),
        ((3, 1), one, one),
        ((3, 2), one, one),
        ((2, 2), (2, 1), (2, 1)),
        ((2, 2), (1, 2), (1, 2)),
        ((2, 1), (2, 1), (2, 1)),
        ((2, 1), (1, 1), (2, 1)),
        ((2, 2), (1, 2), (2, 1)),
        ((1, 1), (2, 2), (2, 2)),
        ((1, 1), (2, 1), (1, 1)),
        ((4, 1), (2, 1), (2, 1)),
    ):
        text = ", ".join(f"{h} x {v}" for h, v in (luma, first, second))
        yield Made(kind, text, Writer((luma, first, second)).write(_YCC))
    large = Writer(((2, 2),) * 3).write(_YCC)
    yield Made(kind, "12 blocks in a unit, where 10 may be", large, refused="broken")
    odd = ycbcr(colours((53, 37)))
    for luma in ((1, 2), (2, 1), (2, 2), (4, 1)):
        data = Writer((luma, one, one)).write(odd)
        yield Made(kind, f"{luma[0]} x {luma[1]}, odd size", data)
    for size in ((9, 9), (16, 8), (2, 2), (3, 31)):
        data = Writer(((2, 2), one, one)).write(ycbcr(colours(size)))
        yield Made(kind, f"4:2:0 of {size[0]} x {size[1]}", data)


def _codings() -> Iterator[Made]:
    kind = "JPEG, coding"
    half = ((2, 2), (1, 1), (1, 1))
    for number in range(3):
        data = saved(picture(), "JPEG", progressive=True, subsampling=number)
        yield Made(kind, f"progressive, {number}", data)
    yield Made(kind, "progressive, grey", saved(picture("L"), "JPEG", progressive=True))
    yield Made(kind, "optimised", saved(picture(), "JPEG", optimize=True))
    yield Made(kind, "quality 1", saved(picture(), "JPEG", quality=1))
    yield Made(kind, "quality 100", saved(picture(), "JPEG", quality=100))
    yield Made(kind, "restarts of rows", saved(picture(), "JPEG", restart_marker_rows=1))
    yield Made(kind, "restarts, 1 block", saved(picture(), "JPEG", restart_marker_blocks=1))
    yield Made(kind, "restarts, progressive", _restarts())
    yield Made(kind, "restarts, 3 blocks", Writer(half, restart=3).write(_YCC))
    yield Made(kind, "a scan per channel", Writer(interleaved=False).write(_YCC))
    yield Made(kind, "a scan per channel, 4:2:0", Writer(half, interleaved=False).write(_YCC))
    apart = Writer(half, interleaved=False, restart=5).write(_YCC)
    yield Made(kind, "a scan per channel, restarts", apart)
    yield Made(kind, "tables of 16 bits", Writer(wide=True, quantiser=5).write(_YCC))
    yield Made(kind, "tables in one segment", Writer(split=False).write(_YCC))
    yield Made(kind, "extended frame", Writer(frame=0xC1).write(_YCC))
    deep = ycbcr(colours(levels=4096), 4095)
    data = Writer(precision=12, frame=0xC1, quantiser=2).write(deep)
    yield Made(kind, "12 bits", data, refused="12 bits")
    grey = Writer(((1, 1),), (1,), precision=12, frame=0xC1).write(deep[..., :1])
    yield Made(kind, "12 bits, grey", grey, refused="12 bits")
    for marker, named in (
        (0xC3, "lossless"),
        (0xC5, "hierarchical"),
        (0xC9, "arithmetic"),
        (0xCA, "arithmetic"),
        (0xCB, "arithmetic"),
        (0xCF, "arithmetic"),
    ):
        # The coding does not fit its frame; who reads such frames reads something, as Pillow does.
        data = Writer(frame=marker).write(_YCC)
        yield Made(kind, f"frame {marker:X}", data, refused=named, either=True)


def _restarts() -> bytes:
    return saved(picture(), "JPEG", progressive=True, restart_marker_rows=1)


def _segments() -> Iterator[Made]:
    kind = "JPEG, segments"
    plain = saved(picture(), "JPEG")
    rest = plain[20:]
    start = plain[:20]
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for name, data in (
        ("ICC profile", saved(picture(), "JPEG", icc_profile=profile)),
        ("ICC profile of 200 KB", saved(picture(), "JPEG", icc_profile=profile.ljust(200_000))),
        ("ICC profile, CMYK", saved(picture("CMYK"), "JPEG", icc_profile=profile)),
        ("comment", saved(picture(), "JPEG", comment=b"x" * 60_000)),
        ("15 segments of 64 KB", start + app(9, b"z" * 65_533) * 15 + rest),
        ("200 segments", start + app(4, b"zz") * 200 + rest),
        ("an empty segment", start + app(7, b"") + rest),
        ("a segment like a picture", start + app(5, plain) + rest),
        ("fill bytes", start + b"\xff" * 5 + rest),
        ("junk between segments", start + b"junk" + rest),
        ("zeros between segments", start + bytes(9) + rest),
        ("a restart marker in the header", start + b"\xff\xd3" + rest),
        ("garbage behind", plain + b"garbage" * 999),
        ("zeros behind", plain + bytes(4096)),
        ("another picture behind", plain + saved(picture("L", (30, 30)), "JPEG")),
        ("HTML behind", plain + b"<html><body>404</body></html>"),
        (
            "Photoshop block",
            start + app(13, b"Photoshop 3.0\0" + b"8BIM\x04\x04\0\0\0\0\0\2ab") + rest,
        ),
        ("broken Photoshop block", start + app(13, b"Photoshop 3.0\0" + b"8BIM\xff") + rest),
        ("segments behind the frame", _late(app(9, b"x" * 99))),
        ("comment behind the frame", _late(segment(0xFE, b"hello"))),
    ):
        yield Made(kind, name, data)
    for frames in (2, 3):
        more = [picture("L", (56, 40))] * (frames - 1)
        data = saved(picture(), "MPO", save_all=True, append_images=more)
        yield Made(kind, f"MPO of {frames} pictures", data)
    turned = saved(picture(), "MPO", save_all=True, append_images=[picture()], exif=_exif(6))
    yield Made(kind, "MPO, turned", turned)


def _late(body: bytes) -> bytes:
    return Writer(late=body).write(_YCC)


def _exif(value: int) -> bytes:
    return b"Exif\0\0" + tiff_orientation(value)


def _turned() -> Iterator[Made]:
    kind = "JPEG, turned"
    for value in range(1, 9):
        for order, name in (("<", "little"), (">", "big")):
            body = tiff_orientation(value, order)
            yield Made(kind, f"{value}, {name} endian", _with(JFIF + exif(body)))
    six, three = tiff_orientation(6), tiff_orientation(3)
    for name, segments in (
        ("EXIF before JFIF", exif(six) + JFIF),
        ("EXIF alone", exif(six)),
        ("EXIF far behind", JFIF + app(9, b"x" * 60_000) * 3 + exif(six)),
        ("EXIF, then Adobe", JFIF + exif(six) + adobe(1)),
        ("0", JFIF + exif(tiff_orientation(0))),
        ("9", JFIF + exif(tiff_orientation(9))),
        ("65535", JFIF + exif(tiff_orientation(65535))),
        ("as long", JFIF + exif(tiff_orientation(6, kind=4))),
        ("as long, big endian", JFIF + exif(tiff_orientation(6, ">", kind=4))),
        ("as byte", JFIF + exif(tiff_orientation(6, kind=1))),
        ("as byte, big endian", JFIF + exif(tiff_orientation(6, ">", kind=1))),
        ("two values", JFIF + exif(tiff_orientation(6, count=2))),
        ("no value", JFIF + exif(tiff_orientation(6, count=0))),
        ("two blocks", JFIF + exif(six) + exif(three)),
        ("two blocks, the first without", JFIF + exif(_nothing()) + exif(three)),
        ("empty block", JFIF + exif(b"")),
        ("block without entries", JFIF + exif(_nothing())),
        ("block cut off", JFIF + exif(six[:20])),
        ("block of garbage", JFIF + exif(b"garbage" * 9)),
        ("block doubled", JFIF + app(1, b"Exif\0\0Exif\0\0" + six)),
        ("block without its zeros", JFIF + app(1, b"Exif" + six)),
        ("block in lower case", JFIF + app(1, b"exif\0\0" + six)),
        ("directory elsewhere", JFIF + exif(_moved(six))),
        ("directory beyond the end", JFIF + exif(six[:4] + b"\xff\xff\0\0" + six[8:])),
        ("an entry beyond the end", JFIF + exif(_beyond(six))),
        ("thumbnail, turned otherwise", JFIF + exif(_thumbnail())),
        ("XMP attribute", JFIF + xmp(xmp_orientation(6))),
        ("XMP element", JFIF + xmp(xmp_orientation(8, element=True))),
        ("XMP 1", JFIF + xmp(xmp_orientation(1))),
        ("XMP, and EXIF otherwise", JFIF + exif(three) + xmp(xmp_orientation(6))),
        ("XMP, then EXIF otherwise", JFIF + xmp(xmp_orientation(6)) + exif(three)),
        ("XMP, and EXIF without", JFIF + exif(_nothing()) + xmp(xmp_orientation(6))),
        ("XMP, and EXIF 1", JFIF + exif(tiff_orientation(1)) + xmp(xmp_orientation(6))),
    ):
        yield Made(kind, name, _with(segments))
    yield Made(kind, "EXIF behind the frame", _late(exif(six)))
    yield Made(
        kind, "EXIF before and behind", Writer(segments=exif(three), late=exif(six)).write(_YCC)
    )
    yield Made(kind, "of Pillow", saved(picture(), "JPEG", exif=_pillow_exif(7)))
    yield Made(kind, "progressive", saved(picture(), "JPEG", exif=_exif(5), progressive=True))
    yield Made(kind, "CMYK", saved(picture("CMYK"), "JPEG", exif=_exif(8)))
    yield Made(kind, "grey", saved(picture("L"), "JPEG", exif=_exif(6)))
    yield Made(kind, "big block", saved(picture(), "JPEG", exif=_exif(6) + bytes(60_000)))


def _with(segments: bytes) -> bytes:
    return Writer(((2, 2), (1, 1), (1, 1)), segments=segments).write(_YCC)


def _pillow_exif(value: int) -> Image.Exif:
    made = Image.Exif()
    made[0x112] = value
    made[0x10F] = "A maker of cameras"
    made.get_ifd(0x8769)[0x9003] = "2020:01:01 00:00:00"
    return made


def _nothing() -> bytes:
    return b"II*\0\x08\0\0\0" + bytes(6)


def _moved(tiff: bytes) -> bytes:
    """The directory at the end of the block, as some writers put it."""
    return tiff[:4] + (8 + 100).to_bytes(4, "little") + bytes(100) + tiff[8:]


def _beyond(tiff: bytes) -> bytes:
    """The first entry, before the orientation, has values behind the block."""
    return tiff[:14] + (9).to_bytes(4, "little") + tiff[18:]


def _thumbnail() -> bytes:
    """A second directory, of a small JPEG that is turned otherwise, as cameras write it."""
    tiff = tiff_orientation(6)
    second = tiff_orientation(3)[8:]
    small = saved(picture(size=(16, 12)), "JPEG", exif=_exif(8))
    return tiff[:-4] + len(tiff).to_bytes(4, "little") + second + small


def _damaged(chance: random.Random) -> Iterator[Made]:
    kind = "JPEG, damaged"
    plain = saved(picture(), "JPEG")
    scan = plain.index(b"\xff\xda")
    for at in (3, 11, 30, scan - 40, scan + 5):
        yield Made(kind, f"cut at {at}, in the header", plain[:at], refused="cut off|beginning of")
    for at in sorted(chance.sample(range(scan + 40, len(plain) - 40), 3)):
        yield Made(kind, f"cut at {at}, in the scan", plain[:at], refused="truncated")
    yield Made(kind, "no end marker", plain[:-2], refused="truncated", either=True)
    yield Made(kind, "no start marker", plain[2:], refused="no format that is read")
    yield Made(kind, "line feed before", b"\n" + plain, refused="JPEG that begins at byte 1;")
    yield Made(
        kind,
        "header of HTTP before",
        b"HTTP/1.1 200 OK\r\n\r\n" + plain,
        refused="JPEG that begins",
    )
    yield Made(kind, "no scan", plain[:scan] + b"\xff\xd9", refused="before any picture")
    yield Made(kind, "no frame", Writer(frame=0xEB).write(_YCC), refused="no frame")
    yield Made(kind, "height 0", Writer(height=0).write(_YCC), refused="size is 56 x 0")
    empty = segment(0xC0, b"\x08\0\x28\0\0\x03" + bytes([1, 17, 0, 2, 17, 0, 3, 17, 0]))
    yield Made(kind, "width 0", Writer(segments=JFIF + empty).write(_YCC), refused="size is 0 x 40")
    yield Made(kind, "a segment of length 0", plain[:20] + b"\xff\xe5\0\0" + plain[20:])
    short = Writer(segments=app(0, b"JFIF\0")).write(_YCC)
    yield Made(kind, "short JFIF", short, refused="a JPEG that")
    yield Made(kind, "tables missing", _without_tables(plain))
    for number in range(4):
        data = bytearray(plain)
        for _ in range(3):
            data[chance.randrange(scan + 14, len(plain) - 2)] = chance.randrange(255)
        yield Made(
            kind,
            f"bytes of the scan changed, {number}",
            bytes(data),
            either=True,
            refused="broken|DALI",
        )
    markers = bytearray(Writer(restart=3).write(_YCC))
    at = markers.rindex(b"\xff\xd1")
    yield Made(
        kind,
        "a restart marker lost",
        bytes(markers[:at] + markers[at + 2 :]),
        refused="broken|DALI",
        either=True,
    )
    markers[at + 1] = 0xD5
    yield Made(
        kind, "a restart marker out of turn", bytes(markers), refused="broken|DALI", either=True
    )


def _without_tables(data: bytes) -> bytes:
    at = data.index(b"\xff\xc4")
    return data[:at] + data[data.index(b"\xff\xda") :]
