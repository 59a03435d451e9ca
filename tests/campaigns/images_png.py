"""PNGs of every depth, colour and order of chunks, written by hand where Pillow does not."""

import random
import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from tests.campaigns.images_form import (
    Made,
    colours,
    picture,
    saved,
    tiff_orientation,
    xmp_orientation,
)

MAGIC = b"\x89PNG\r\n\x1a\n"
_GREY, _RGB, _PALETTE, _GREY_ALPHA, _RGBA = 0, 2, 3, 4, 6
_NAMES = {0: "grey", 2: "RGB", 3: "palette", 4: "grey and alpha", 6: "RGBA"}
_DEPTHS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}
_PASSES = (
    (0, 0, 8, 8),
    (4, 0, 8, 8),
    (0, 4, 4, 8),
    (2, 0, 4, 4),
    (0, 2, 2, 4),
    (1, 0, 2, 2),
    (0, 1, 1, 2),
)


def chunk(kind: bytes, body: bytes = b"", checksum: int | None = None) -> bytes:
    """A chunk; its checksum may be a wrong one."""
    right = zlib.crc32(kind + body)
    return (
        struct.pack(">I", len(body))
        + kind
        + body
        + struct.pack(">I", right if checksum is None else checksum)
    )


@dataclass(frozen=True)
class Png:
    """A PNG in parts.

    Attributes:
        color: PNG's number of a kind.
        bits: per sample.
        samples: ``[H, W, C]`` as stored.
        palette: ``[N, 3]``, for kind 3.
        interlaced: in seven passes.
        header: in the place of the right IHDR.
    """

    color: int
    bits: int
    samples: np.ndarray
    palette: np.ndarray | None = None
    interlaced: bool = False
    header: bytes | None = None

    def ihdr(self) -> bytes:
        """The first chunk."""
        height, width = self.samples.shape[:2]
        right = struct.pack(">IIBBBBB", width, height, self.bits, self.color, 0, 0, self.interlaced)
        return chunk(b"IHDR", right if self.header is None else self.header)

    def plte(self) -> bytes:
        """The palette's chunk, or nothing."""
        return (
            b"" if self.palette is None else chunk(b"PLTE", self.palette.astype(np.uint8).tobytes())
        )

    def pixels(self) -> bytes:
        """What the IDAT chunks hold."""
        if not self.interlaced:
            return zlib.compress(self._rows(self.samples))
        passes = [self.samples[y::down, x::across] for x, y, across, down in _PASSES]
        return zlib.compress(b"".join(self._rows(part) for part in passes if part.size))

    def _rows(self, samples: np.ndarray) -> bytes:
        rows = samples.reshape(len(samples), -1)
        if self.bits == 16:
            return b"".join(b"\0" + row.astype(">u2").tobytes() for row in rows)
        bits = (rows[..., None] >> np.arange(self.bits)[::-1] & 1).reshape(len(rows), -1)
        return b"".join(b"\0" + row.tobytes() for row in np.packbits(bits.astype(np.uint8), axis=1))

    def write(
        self,
        before: bytes = b"",
        between: bytes = b"",
        after: bytes = b"",
        cuts: Sequence[int] | None = None,
        behind: bytes = b"",
    ) -> bytes:
        """The file.

        Args:
            before: chunks before the palette.
            between: chunks behind it.
            after: chunks behind the pixels.
            cuts: lengths of the IDAT chunks; the last takes the rest.
            behind: bytes after IEND.
        """
        packed, parts = self.pixels(), []
        for cut in cuts or ():
            parts.append(chunk(b"IDAT", packed[:cut]))
            packed = packed[cut:]
        parts.append(chunk(b"IDAT", packed))
        return b"".join(
            [
                MAGIC,
                self.ihdr(),
                before,
                self.plte(),
                between,
                *parts,
                after,
                chunk(b"IEND"),
                behind,
            ]
        )


def make(color: int, bits: int, interlaced: bool = False, size: tuple[int, int] = (56, 40)) -> Png:
    """The picture in a kind and depth of PNG."""
    levels = 1 << bits
    rgb = colours(size, levels)
    if color == _PALETTE:
        count = min(levels, 200)
        palette = colours((count, 3))[1]
        return Png(
            color, bits, rgb[..., :1] * (count - 1) // (levels - 1 or 1), palette, interlaced
        )
    grey = rgb[..., :1]
    x, y = np.meshgrid(np.linspace(0, 1, size[0]), np.linspace(0, 1, size[1]))
    alpha = np.where(y < 0.3, 0, (levels - 1) * (0.3 + 0.35 * (x + y))).astype(np.int64)[..., None]
    parts = {_GREY: [grey], _RGB: [rgb], _GREY_ALPHA: [grey, alpha], _RGBA: [rgb, alpha]}[color]
    return Png(color, bits, np.concatenate(parts, -1), None, interlaced)


def shown(png: Png, key: Sequence[int] | None = None, alphas: Sequence[int] = ()) -> np.ndarray:
    """What the standard says that a PNG shows on white, ``[H, W, 3]`` of 0..255.

    Args:
        png: the file.
        key: the transparent colour, one or three samples.
        alphas: of the palette's first entries.
    """
    top = (1 << png.bits) - 1
    samples = png.samples
    opaque = np.ones(samples.shape[:2])
    if png.palette is not None:
        index = samples[..., 0]
        colour = png.palette[index].astype(float)
        table = np.full(len(png.palette), 255.0)
        table[: len(alphas)] = alphas
        opaque = table[index] / 255
    else:
        channels = 1 if png.color in (_GREY, _GREY_ALPHA) else 3
        colour = np.broadcast_to(samples[..., :channels] * 255 / top, (*samples.shape[:2], 3))
        if png.color in (_GREY_ALPHA, _RGBA):
            opaque = samples[..., -1] / top
        elif key is not None:
            opaque = 1.0 - (samples == np.array(key)).all(-1)
    return 255 + (colour - 255) * opaque[..., None]


def pngs(chance: random.Random) -> Iterator[Made]:
    """All of them.

    Args:
        chance: chooses sizes of chunks and what is damaged.
    """
    yield from _depths()
    yield from _transparent()
    yield from _chunks(chance)
    yield from _turned()
    yield from _animated()
    yield from _damaged(chance)


def _depths() -> Iterator[Made]:
    kind = "PNG, depths"
    for color, depths in _DEPTHS.items():
        for bits in depths:
            for interlaced in (False, True):
                name = f"{_NAMES[color]}, {bits} bits" + ", interlaced" * interlaced
                for size in ((56, 40),) if not interlaced else ((56, 40), (5, 3)):
                    png = make(color, bits, interlaced, size)
                    text = name + ", 5 x 3" * (size == (5, 3))
                    yield Made(kind, text, png.write(), truth=shown(png))
    png = make(_PALETTE, 8)
    short = Png(_PALETTE, 8, np.minimum(png.samples, 9), png.palette[:10])
    yield Made(kind, "palette of 10 colours", short.write(), truth=shown(short))
    for form in ("1", "L", "P", "RGB", "RGBA", "LA", "I;16"):
        image = picture("I" if form == "I;16" else form)
        if form == "I;16":
            image = Image.fromarray((colours(levels=65536)[..., 0]).astype(np.uint16))
        yield Made(kind, f"{form} of Pillow", saved(image, "PNG"))


def _transparent() -> Iterator[Made]:
    kind = "PNG, tRNS"
    for bits in _DEPTHS[_GREY]:
        for interlaced in (False, True):
            png = make(_GREY, bits, interlaced)
            key = int(png.samples[20, 28, 0])
            data = png.write(between=chunk(b"tRNS", struct.pack(">H", key)))
            name = f"grey, {bits} bits" + ", interlaced" * interlaced
            yield Made(kind, name, data, truth=shown(png, [key]))
    for bits in _DEPTHS[_RGB]:
        png = make(_RGB, bits)
        key = [int(value) for value in png.samples[20, 28]]
        data = png.write(between=chunk(b"tRNS", struct.pack(">3H", *key)))
        yield Made(kind, f"RGB, {bits} bits", data, truth=shown(png, key))
        near = [key[0], key[1], key[2] ^ 1]
        data = png.write(between=chunk(b"tRNS", struct.pack(">3H", *near)))
        yield Made(kind, f"RGB, {bits} bits, no such pixel", data, truth=shown(png, near))
    deep = make(_RGB, 16)
    flat = Png(_RGB, 16, np.where(deep.samples > 30000, 0x1234, deep.samples))
    key = [0x1234] * 3
    data = flat.write(between=chunk(b"tRNS", struct.pack(">3H", *key)))
    yield Made(kind, "RGB, 16 bits, an area", data, truth=shown(flat, key))
    grey = make(_GREY, 16)
    for key in (0, 255, 65535, 0x0102):
        data = grey.write(between=chunk(b"tRNS", struct.pack(">H", key)))
        yield Made(kind, f"grey, 16 bits, {key}", data, truth=shown(grey, [key]))
    for bits in _DEPTHS[_PALETTE]:
        png = make(_PALETTE, bits)
        for name, alphas in (
            ("one clear", [255] * (len(png.palette) // 2) + [0]),
            ("one clear at first", [0]),
            ("many", [i * 255 // len(png.palette) for i in range(len(png.palette))]),
            ("all opaque", [255] * len(png.palette)),
            ("few", [10, 200][: len(png.palette)]),
        ):
            data = png.write(between=chunk(b"tRNS", bytes(alphas)))
            yield Made(kind, f"palette, {bits} bits, {name}", data, truth=shown(png, alphas=alphas))
    png = make(_PALETTE, 8)
    data = png.write(between=chunk(b"tRNS"))
    yield Made(kind, "palette, empty", data, truth=shown(png))
    data = png.write(before=chunk(b"tRNS", b"\0"))
    yield Made(kind, "palette, tRNS before PLTE", data, either=True, refused="broken|checksum|DALI")
    late = make(_RGB, 8).write(after=chunk(b"tRNS", bytes(6)))
    yield Made(kind, "tRNS behind the pixels", late, either=True, refused="DALI|broken")


def _chunks(chance: random.Random) -> Iterator[Made]:
    kind = "PNG, chunks"
    png = make(_RGB, 8)
    truth = shown(png)
    length = len(png.pixels())
    text = chunk(b"tEXt", b"Comment\0hello")
    for name, options in (
        ("IDATs of 1 byte", {"cuts": [1] * (length - 1)}),
        ("IDATs of 8 KB", {"cuts": [8192]}),
        ("IDATs of chance", {"cuts": [chance.randrange(1, 40) for _ in range(20)]}),
        ("an empty IDAT first", {"cuts": [0]}),
        ("an empty IDAT in the middle", {"cuts": [30, 0, 0]}),
        ("an empty IDAT last", {"cuts": [length]}),
        ("gAMA of 1", {"before": chunk(b"gAMA", struct.pack(">I", 100000))}),
        ("gAMA of 1 / 2.2", {"before": chunk(b"gAMA", struct.pack(">I", 45455))}),
        ("gAMA of 0", {"before": chunk(b"gAMA", bytes(4))}),
        ("sRGB", {"before": chunk(b"sRGB", b"\0")}),
        (
            "cHRM",
            {
                "before": chunk(
                    b"cHRM",
                    struct.pack(">8I", *[31270, 32900, 64000, 33000, 30000, 60000, 15000, 6000]),
                )
            },
        ),
        ("iCCP", {"before": chunk(b"iCCP", b"x\0\0" + zlib.compress(b"profile" * 40))}),
        ("broken iCCP", {"before": chunk(b"iCCP", b"x\0\0garbage")}),
        ("sBIT", {"before": chunk(b"sBIT", b"\5\6\5")}),
        ("bKGD", {"between": chunk(b"bKGD", struct.pack(">3H", 255, 0, 0))}),
        ("hIST", {"before": chunk(b"hIST", bytes(6))}),
        ("pHYs", {"before": chunk(b"pHYs", struct.pack(">IIB", 2, 1, 0))}),
        ("tIME", {"after": chunk(b"tIME", bytes(7))}),
        ("text", {"before": text, "after": text}),
        ("text without a keyword", {"before": chunk(b"tEXt", b"\0hello")}),
        (
            "text of 60 KB, packed",
            {"before": chunk(b"zTXt", b"k\0\0" + zlib.compress(b"a" * 60_000))},
        ),
        ("broken zTXt", {"before": chunk(b"zTXt", b"k\0\0garbage")}),
        ("iTXt", {"before": chunk(b"iTXt", b"k\0\0\0en\0k\0hello \xc3\xa9")}),
        ("Latin text", {"before": chunk(b"tEXt", b"Titel\0\xfcber")}),
        ("unknown ancillary", {"before": chunk(b"abCd", b"what"), "after": chunk(b"zzZz")}),
        ("cICP", {"before": chunk(b"cICP", b"\x01\x0d\0\1")}),
        ("suggested palette", {"between": chunk(b"PLTE", bytes(range(60)))}),
        ("sPLT", {"before": chunk(b"sPLT", b"x\0\x08" + bytes(12))}),
        (
            "all at once",
            {
                "before": chunk(b"gAMA", struct.pack(">I", 45455))
                + text * 9
                + chunk(b"pHYs", bytes(9)),
                "after": text,
            },
        ),
        ("garbage behind", {"behind": b"garbage" * 99}),
        ("another PNG behind", {"behind": png.write()}),
        ("zeros behind", {"behind": bytes(99)}),
        ("gAMA twice", {"before": chunk(b"gAMA", struct.pack(">I", 45455)) * 2}),
        ("a text of 'transparency'", {"before": chunk(b"tEXt", b"transparency\0\0\0\0\0\0\0")}),
    ):
        yield Made(kind, name, png.write(**options), truth=truth)
    bad = chunk(b"tEXt", b"Comment\0x", checksum=7)
    for name, data in (
        ("after the pixels, wrong checksum in text", png.write(after=bad)),
        ("no IEND", png.write()[:-12]),
        ("IEND cut", png.write()[:-3]),
        ("wrong checksum of IEND", png.write()[:-4] + bytes(4)),
        ("wrong checksum of IDAT", _recheck(png.write(), b"IDAT")),
    ):
        yield Made(kind, name, data, truth=truth)
    yield Made(
        kind, "text between IDATs", _between(png, text), either=True, refused="broken|trunc|DALI"
    )


def _recheck(data: bytes, kind: bytes) -> bytes:
    """A wrong checksum for the first chunk of a kind."""
    at = data.index(kind)
    (length,) = struct.unpack_from(">I", data, at - 4)
    end = at + 4 + length
    return data[:end] + bytes([data[end] ^ 255]) + data[end + 1 :]


def _between(png: Png, body: bytes) -> bytes:
    packed = png.pixels()
    parts = chunk(b"IDAT", packed[:50]) + body + chunk(b"IDAT", packed[50:])
    return MAGIC + png.ihdr() + parts + chunk(b"IEND")


def _turned() -> Iterator[Made]:
    kind = "PNG, turned"
    png = make(_RGB, 8)
    for value in range(1, 9):
        body = tiff_orientation(value, ">" if value % 2 else "<")
        yield Made(kind, f"eXIf {value}", png.write(before=chunk(b"eXIf", body)))
        yield Made(kind, f"eXIf {value} behind the pixels", png.write(after=chunk(b"eXIf", body)))
    six = tiff_orientation(6)
    packet = xmp_orientation(6)
    raw = f"\nexif\n{len(six) + 6:8}\n{(b'Exif' + bytes(2) + six).hex()}\n".encode()
    for name, options in (
        ("eXIf of garbage", {"before": chunk(b"eXIf", b"garbage")}),
        ("eXIf, empty", {"before": chunk(b"eXIf")}),
        ("eXIf with its JPEG header", {"before": chunk(b"eXIf", b"Exif\0\0" + six)}),
        ("eXIf 9", {"before": chunk(b"eXIf", tiff_orientation(9))}),
        ("XMP", {"before": chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + packet)}),
        (
            "XMP, packed",
            {"before": chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(packet))},
        ),
        (
            "XMP behind the pixels",
            {"after": chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + packet)},
        ),
        ("XMP 1", {"before": chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp_orientation(1))}),
        (
            "raw profile of ImageMagick",
            {"before": chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(raw))},
        ),
        ("raw profile, plain", {"before": chunk(b"tEXt", b"Raw profile type exif\0" + raw)}),
        ("tEXt named exif", {"before": chunk(b"tEXt", b"exif\0Exif\0\0" + six)}),
        ("tEXt named xmp", {"before": chunk(b"tEXt", b"xmp\0" + packet)}),
    ):
        yield Made(kind, name, png.write(**options))
    for color, bits in ((_GREY, 16), (_RGBA, 8), (_PALETTE, 4)):
        odd = make(color, bits)
        yield Made(kind, f"{_NAMES[color]}, {bits} bits", odd.write(before=chunk(b"eXIf", six)))
    yield Made(kind, "of Pillow", saved(picture(), "PNG", exif=b"Exif\0\0" + six))


def _animated() -> Iterator[Made]:
    kind = "PNG, animated"
    second = picture("L").convert("RGB")
    for mode in ("RGB", "RGBA", "P"):
        frames = [picture(mode).copy(), second.convert(mode)]
        data = saved(frames[0], "PNG", save_all=True, append_images=frames[1:], duration=50)
        yield Made(kind, mode, data)
    data = saved(second, "PNG", save_all=True, append_images=[picture()], default_image=True)
    yield Made(kind, "with a default picture", data)
    still = make(_RGB, 8)
    yield Made(kind, "no frame", still.write(before=chunk(b"acTL", struct.pack(">II", 0, 0))))
    one = chunk(b"acTL", struct.pack(">II", 1, 0))
    part = one + chunk(b"fcTL", struct.pack(">IIIIIHHBB", 0, 56, 40, 0, 0, 1, 10, 0, 0))
    yield Made(kind, "one frame", still.write(before=part))
    yield Made(kind, "cut acTL", still.write(before=chunk(b"acTL", b"x")), refused="acTL")


def _damaged(chance: random.Random) -> Iterator[Made]:
    kind = "PNG, damaged"
    png = make(_RGB, 8)
    whole = png.write()
    text = chunk(b"tEXt", b"Comment\0x", checksum=7)
    yield Made(
        kind, "wrong checksum in text", png.write(before=text), refused="checksum of chunk tEXt"
    )
    for name, ancillary in (("gAMA", bytes(4)), ("pHYs", bytes(9)), ("zzZz", b"x")):
        data = png.write(before=chunk(name.encode(), ancillary, checksum=1))
        yield Made(kind, f"wrong checksum in {name}", data, refused=f"checksum of chunk {name}")
    yield Made(
        kind, "wrong checksum in IHDR", _recheck(whole, b"IHDR"), refused="checksum of chunk IHDR"
    )
    for at in (4, 8, 12, 20, 30, 37, 45):
        yield Made(kind, f"cut at {at}", whole[:at], refused="cut off|beginning of")
    for at in sorted(chance.sample(range(60, len(whole) - 60), 3)):
        yield Made(kind, f"cut at {at}, in the pixels", whole[:at], refused="truncated|cut off")
    for name, header, reason in (
        ("width 0", struct.pack(">IIBBBBB", 0, 40, 8, 2, 0, 0, 0), "size is 0 x 40"),
        ("height 0", struct.pack(">IIBBBBB", 56, 0, 8, 2, 0, 0, 0), "size is 56 x 0"),
        ("3 bits", struct.pack(">IIBBBBB", 56, 40, 3, 0, 0, 0, 0), "3 bits"),
        ("colour 5", struct.pack(">IIBBBBB", 56, 40, 8, 5, 0, 0, 0), "colour type 5"),
        ("RGB of 4 bits", struct.pack(">IIBBBBB", 56, 40, 4, 2, 0, 0, 0), "colour type 2"),
        ("unknown filter", struct.pack(">IIBBBBB", 56, 40, 8, 2, 0, 1, 0), "filter"),
        ("short IHDR", b"\0\0\0\x38\0\0\0\x28", "IHDR has 8"),
        ("bomb", struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0), "more than"),
        ("400 megapixels", struct.pack(">IIBBBBB", 20000, 20000, 8, 2, 0, 0, 0), "more than"),
        ("110 megapixels", struct.pack(">IIBBBBB", 11000, 10000, 8, 2, 0, 0, 0), "more than"),
        ("a line", struct.pack(">IIBBBBB", 5000, 2, 8, 2, 0, 0, 0), "sides differ"),
        ("a pixel", struct.pack(">IIBBBBB", 1, 1, 8, 2, 0, 0, 0), "a side is shorter"),
        (
            "more rows than pixels",
            struct.pack(">IIBBBBB", 56, 50, 8, 2, 0, 0, 0),
            "to its end",
        ),
    ):
        yield Made(kind, name, Png(2, 8, png.samples, header=header).write(), refused=reason)
    first = MAGIC + chunk(b"tEXt", b"a\0b") + whole[8:]
    yield Made(kind, "IHDR is second", first, either=True, refused="not IHDR")
    no_pixels = MAGIC + png.ihdr() + chunk(b"IEND")
    yield Made(kind, "no IDAT", no_pixels, refused="no chunk IDAT")
    palette = make(_PALETTE, 8)
    without = MAGIC + palette.ihdr() + chunk(b"IDAT", palette.pixels()) + chunk(b"IEND")
    yield Made(kind, "no PLTE", without, either=True, refused="broken|DALI")
    garbage = MAGIC + png.ihdr() + chunk(b"IDAT", b"garbage") + chunk(b"IEND")
    yield Made(kind, "pixels of garbage", garbage, refused="broken")
    half = zlib.compress(png._rows(png.samples[:20]))
    short = MAGIC + png.ihdr() + chunk(b"IDAT", half) + chunk(b"IEND")
    yield Made(kind, "half of the rows", short, refused="to its end")
    yield Made(
        kind,
        "line ends of a text file",
        whole.replace(b"\r\n", b"\n", 1),
        refused="no format that is read",
    )
    yield Made(
        kind,
        "critical chunk unknown",
        png.write(before=chunk(b"ABCD")),
        either=True,
        refused="DALI|broken",
    )
    beyond = Png(3, 8, np.full((40, 56, 1), 9), np.zeros((4, 3)))
    yield Made(kind, "index beyond the palette", beyond.write(), either=True, refused="DALI|broken")
    huge = png.write(before=struct.pack(">I4s", 0x7FFFFFFF, b"tEXt"))
    yield Made(kind, "a chunk of 2 GB", huge, refused="cut off")
