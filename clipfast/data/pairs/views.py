"""The two pictures of a pair, as a tower reads them."""

from __future__ import annotations

import numpy as np
from PIL import Image

from clipfast.data.pairs.distortions import distort, interpolation
from clipfast.data.pairs.margins import without_margins


def squashed(
    image: Image.Image,
    size: int,
    resampling: Image.Resampling = Image.Resampling.BICUBIC,
    margins: bool = False,
) -> np.ndarray:
    """The picture in a square, whatever that does to its aspect: this is what a detector reads.

    Args:
        image: RGB.
        size: S, pixels.
        resampling: how.
        margins: with them; otherwise they are cut off.

    Returns:
        ``[S, S, 3]`` uint8.
    """
    inside = image if margins else without_margins(image)
    return np.asarray(inside.resize((size, size), resampling))


def two_views(image: Image.Image, size: int, rng: np.random.Generator) -> np.ndarray:
    """The picture as it is, and distorted, both without margins.

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
