"""Digital: low contrast, a bent picture, coarse pixels, JPEG."""

import io

import numpy as np
from PIL import Image

from clipfast.eval.sets.corruptions.fields import Pixels, grid, sample, short_side, smooth

_CELL = 0.14  # of the field that bends a picture, of its shorter side


def contrast(x: Pixels, level: int, rng: np.random.Generator) -> Pixels:
    """All values nearer to the picture's mean."""
    mean = x.mean((0, 1), keepdims=True)
    return mean + (0.7, 0.52, 0.38, 0.26, 0.16)[level] * (x - mean)


def elastic_transform(x: Pixels, level: int, rng: np.random.Generator) -> Pixels:
    """Stretched here and squeezed there."""
    side = short_side(x)
    reach = (0.025, 0.04, 0.056, 0.074, 0.095)[level] * side
    rows, columns = grid(x)
    cell = max(2.0, _CELL * side)
    down, right = (reach * smooth(len(x), x.shape[1], cell, rng) for _ in range(2))
    return sample(x, rows + down, columns + right)


def pixelate(x: Pixels, level: int, rng: np.random.Generator) -> Pixels:
    """Made smaller by means of boxes, and larger again by repetition."""
    share = (0.7, 0.55, 0.43, 0.33, 0.25)[level]
    height, width = x.shape[:2]
    small = (max(1, round(width * share)), max(1, round(height * share)))
    image = _image(x).resize(small, Image.Resampling.BOX)
    return np.asarray(image.resize((width, height), Image.Resampling.NEAREST)) / 255


def jpeg_compression(x: Pixels, level: int, rng: np.random.Generator) -> Pixels:
    """Written as JPEG of low quality, and read again."""
    file = io.BytesIO()
    _image(x).save(file, "JPEG", quality=(40, 25, 16, 10, 6)[level])
    return np.asarray(Image.open(file).convert("RGB")) / 255


def _image(x: Pixels) -> Image.Image:
    return Image.fromarray(np.rint(x * 255).astype(np.uint8))
