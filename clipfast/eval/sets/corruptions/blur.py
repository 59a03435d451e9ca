"""Blur: of the lens, of frosted glass, of a moving camera, of one that comes nearer."""

import numpy as np

from clipfast.eval.sets.corruptions.fields import (
    Pixels,
    convolve,
    disc,
    gaussian,
    grid,
    sample,
    short_side,
    streak,
)

_ZOOM_STEP = 0.02


def defocus_blur(x: Pixels, level: int, rng: np.random.Generator) -> Pixels:
    """The mean over a disc."""
    return convolve(x, disc((0.016, 0.024, 0.034, 0.045, 0.06)[level] * short_side(x)))


def glass_blur(x: Pixels, level: int, rng: np.random.Generator) -> Pixels:
    """Each pixel comes from somewhere near, and the result is softened."""
    reach = (0.014, 0.022, 0.032, 0.044, 0.06)[level] * short_side(x)
    rows, columns = grid(x)
    by_row, by_column = rng.uniform(-reach, reach, (2, *rows.shape))
    scattered = sample(x, rows + by_row, columns + by_column)
    return convolve(scattered, gaussian(max(0.4, 0.006 * short_side(x))))


def motion_blur(x: Pixels, level: int, rng: np.random.Generator) -> Pixels:
    """The mean along a line, whose direction is random."""
    length = (0.06, 0.09, 0.13, 0.18, 0.24)[level] * short_side(x)
    return convolve(x, streak(length, rng.uniform(-np.pi / 4, np.pi / 4)))


def zoom_blur(x: Pixels, level: int, rng: np.random.Generator) -> Pixels:
    """The mean of the picture and of larger ones, about its middle."""
    most = (0.06, 0.12, 0.18, 0.25, 0.33)[level]
    rows, columns = grid(x)
    middle, centre = (rows.max() / 2, columns.max() / 2)
    total = np.zeros_like(x)
    factors = 1 + np.arange(0, most + 1e-9, _ZOOM_STEP)
    for factor in factors:
        total += sample(x, middle + (rows - middle) / factor, centre + (columns - centre) / factor)
    return total / len(factors)
