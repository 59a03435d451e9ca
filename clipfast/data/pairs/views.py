"""The two pictures of a pair, as a tower reads them."""

from __future__ import annotations

import numpy as np
from PIL import Image

from clipfast.data.pairs.distortions import distort, interpolation
from clipfast.data.pairs.margins import without_margins


def squashed(
    image: Image.Image, size: int, resampling: Image.Resampling = Image.Resampling.BICUBIC
) -> np.ndarray:
    """The picture without its margins in a square, whatever that does to its aspect: this is what
    a detector reads of a picture.

    Args:
        image: RGB.
        size: S, pixels.
        resampling: how.

    Returns:
        ``[S, S, 3]`` uint8.
    """
    return np.asarray(without_margins(image).resize((size, size), resampling))


def two_views(image: Image.Image, size: int, rng: np.random.Generator) -> np.ndarray:
    """The picture as it is, and distorted.

    Args:
        image: RGB.
        size: S, pixels.
        rng: what the distortion depends on.

    Returns:
        ``[2, S, S, 3]`` uint8.
    """
    plain = squashed(image, size)
    distorted = distort(image, rng)
    return np.stack([plain, squashed(distorted, size, interpolation(rng))])
