"""The perceptual hash: the signs of a picture's slowest waves.

    c = DCT-II of the grey picture at 32 x 32, its first 8 x 8 coefficients
    bit_i = c_i > median(c)

Two hashes of h different bits have the similarity 1 - 2 h / 64.

Source: Zauner 2010, "Implementation and benchmarking of perceptual image hash functions".
"""

from __future__ import annotations

import numpy as np
from PIL import Image

from clipfast.curate.near.detectors import Prepared

_SIDE = 32
_WAVES = 8
BITS = _WAVES * _WAVES


class PerceptualHash(Prepared):
    """See the head of this module."""

    name = "hash"
    digest = f"dct-{_SIDE}-{_WAVES}"

    def prepare(self, image: np.ndarray) -> np.ndarray:
        """``[32, 32]`` uint8, grey."""
        grey = Image.fromarray(image).convert("L")
        return np.asarray(grey.resize((_SIDE, _SIDE), Image.Resampling.LANCZOS))

    def vectors(self, prepared: np.ndarray) -> np.ndarray:
        """Bits as 1/8 and -1/8, so that float16 holds them exactly."""
        waves = _cosines()
        slow = np.einsum("ux,nxy,vy->nuv", waves, prepared.astype(np.float64), waves)
        # Coefficients of a picture of one grey are 0 but for rounding, and must not be drawn lots.
        slow = slow.reshape(-1, BITS).round(6)
        bits = slow > np.median(slow, axis=1, keepdims=True)
        return np.where(bits, 1.0, -1.0).astype(np.float32) / np.float32(np.sqrt(BITS))


def _cosines() -> np.ndarray:
    """``[8, 32]``: the slowest waves of the DCT-II."""
    at = np.arange(_SIDE) + 0.5
    return np.cos(np.pi / _SIDE * np.outer(np.arange(_WAVES), at))
