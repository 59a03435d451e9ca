"""Raw pixels of a published archive, given as PNG files that every decoder here reads."""

import struct
import zlib
from dataclasses import dataclass

import numpy as np

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_GREY, _RGB = 0, 2


@dataclass(frozen=True, eq=False)
class RawPixels:
    """Gives the i-th of some images as a PNG, without loss.

    Attributes:
        pixels: ``[N, H, W]`` grey, or ``[N, H, W, 3]`` RGB, uint8.
    """

    pixels: np.ndarray

    def __call__(self, i: int) -> bytes:
        return png(self.pixels[i])


def png(pixels: np.ndarray) -> bytes:
    """An image as a PNG without compression: it is read once, and soon.

    Args:
        pixels: ``[H, W]`` grey, or ``[H, W, 3]`` RGB, uint8.
    """
    height, width = pixels.shape[:2]
    # In front of each row stands its filter: none.
    rows = np.zeros((height, 1 + pixels[0].size), np.uint8)
    rows[:, 1:] = pixels.reshape(height, -1)
    kind = _GREY if pixels.ndim == 2 else _RGB
    header = struct.pack(">IIBBBBB", width, height, 8, kind, 0, 0, 0)
    body = zlib.compress(rows.tobytes(), 0)
    return _SIGNATURE + _chunk(b"IHDR", header) + _chunk(b"IDAT", body) + _chunk(b"IEND", b"")


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
