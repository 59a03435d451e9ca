"""Samples that people's shards hold and no run can train on, each by its kind.

A kind is the image's extension, its bytes, the caption's bytes, and words of the reason; no words
where the sample is fit for training.
"""

import io
import struct
import tarfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image


class Kind(NamedTuple):
    """A sample, and why it is refused."""

    extension: str
    image: bytes
    caption: bytes = b"a fine caption"
    words: str = ""


def picture(size: tuple[int, int] = (48, 40), seed: int = 0) -> Image.Image:
    """Noise, which compresses badly: its file can be cut in the middle of the pixels."""
    shape = (size[1], size[0], 3)
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, np.uint8))


def encoded(form: str, image: Image.Image | None = None, **options) -> bytes:
    """A picture as a file."""
    buffer = io.BytesIO()
    (image or picture()).save(buffer, form, **options)
    return buffer.getvalue()


def chunk(kind: bytes, body: bytes) -> bytes:
    """A chunk of a PNG."""
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def huge_png(side: int) -> bytes:
    """A PNG of zeros, of a side whose square is hundreds of megapixels, in a few kilobytes."""
    rows = zlib.compressobj(9)
    packed = rows.compress(bytes((side + 7) // 8 + 1) * 64) + rows.flush()
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    parts = (b"IHDR", header), (b"IDAT", packed), (b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


def with_frame(jpeg: bytes, **fields: int) -> bytes:
    """A JPEG whose frame says something else of its bits, height or width."""
    at = jpeg.index(b"\xff\xc0")
    changed = bytearray(jpeg)
    if "bits" in fields:
        changed[at + 4] = fields["bits"]
    if "height" in fields:
        changed[at + 5 : at + 7] = struct.pack(">H", fields["height"])
    if "width" in fields:
        changed[at + 7 : at + 9] = struct.pack(">H", fields["width"])
    return bytes(changed)


def flipped(data: bytes, at: int) -> bytes:
    """The bytes with one of them turned over."""
    return data[:at] + bytes((data[at] ^ 0xFF,)) + data[at + 1 :]


def kinds() -> dict[str, Kind]:
    """All kinds by their names."""
    jpeg, png, webp = encoded("JPEG"), encoded("PNG"), encoded("WEBP", lossless=True)
    return {
        "empty image": Kind("jpg", b"", words="0 bytes"),
        "zeros": Kind("jpg", bytes(4096), words="zero bytes"),
        "text": Kind("jpg", b"404 not found", words="no format that is read"),
        "html": Kind("jpg", b"<!DOCTYPE html><p>gone</p>", words="an HTML page"),
        "json": Kind("png", b'{"error": "gone"}', words="like JSON"),
        "lfs pointer": Kind("jpg", b"version https://git-lfs.github.com/spec/v1\n", words="LFS"),
        "svg": Kind("png", b"<svg xmlns='http://www.w3.org/2000/svg'/>", words="SVG"),
        "pdf": Kind("jpg", b"%PDF-1.7\n", words="a PDF"),
        "jpeg of a start": Kind("jpg", jpeg[:2], words="beginning of an image"),
        "jpeg cut in its header": Kind("jpg", jpeg[:100], words="cut off after 100 bytes"),
        "jpeg cut in its pixels": Kind("jpg", jpeg[: len(jpeg) // 2], words="image"),
        "jpeg of 12 bits": Kind("jpg", with_frame(jpeg, bits=12), words="12 bits per channel"),
        "jpeg without a height": Kind("jpg", with_frame(jpeg, height=0), words="image"),
        "jpeg of 400 megapixels": Kind(
            "jpg", with_frame(jpeg, width=20000, height=20000), words="decompression bomb"
        ),
        "png cut": Kind("png", png[: len(png) // 2], words="cut off after"),
        "png with a wrong checksum": Kind("png", flipped(png, len(png) // 2), words="image"),
        "png of 400 megapixels": Kind("png", huge_png(20000), words="decompression bomb"),
        "webp cut": Kind("webp", webp[: len(webp) // 2], words="image is"),
        "one point": Kind("png", encoded("PNG", picture((1, 1))), words="shorter than 2"),
        "strip": Kind("png", encoded("PNG", picture((400, 4))), words="differ more than 32"),
        "floats": Kind(
            "png",
            encoded("TIFF", Image.fromarray(np.full((9, 9), np.nan, np.float32))),
            words="mode F",
        ),
        "not utf-8": Kind("jpg", jpeg, "café".encode("latin-1"), "not UTF-8"),
        "utf-16": Kind("jpg", jpeg, "a cat".encode("utf-16"), "not UTF-8"),
        "no caption": Kind("jpg", jpeg, b"", "caption is empty"),
        "blanks": Kind("jpg", jpeg, b" \t\r\n ", "caption is empty"),
        "no-break spaces": Kind("jpg", jpeg, "\u00a0\u3000".encode(), "caption is empty"),
        "zero-width": Kind("jpg", jpeg, "\u200b\u2060\ufeff".encode(), "caption is empty"),
        "control characters": Kind("jpg", jpeg, b"\x00\x01\x1b[0m", "caption is empty"),
        "entity": Kind("jpg", jpeg, b"&nbsp;&#8203;", "caption is empty"),
        "both": Kind("jpg", b"", b"", "image has 0 bytes; caption is empty"),
        "png called jpg": Kind("jpg", png),
        "jpeg called png": Kind("png", jpeg),
        "gif called jpg": Kind("jpg", encoded("GIF")),
        "grey": Kind("jpg", encoded("JPEG", picture().convert("L"))),
        "with a byte order mark": Kind("jpg", jpeg, "\ufeffa cat".encode()),
        "emoji": Kind("jpg", jpeg, "🏳️‍🌈".encode()),
    }


def write_shard(path: Path, samples: Sequence[Kind]) -> str:
    """A shard of samples, named by their number."""
    with tarfile.open(path, "w") as tar:
        for number, sample in enumerate(samples):
            for suffix, data in ((sample.extension, sample.image), ("txt", sample.caption)):
                info = tarfile.TarInfo(f"{number:06d}.{suffix}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return str(path)


def good(number: int) -> Kind:
    """A sound sample; each has a picture and a caption of its own."""
    return Kind("jpg", encoded("JPEG", picture((40, 32), number)), f"number {number}".encode())
