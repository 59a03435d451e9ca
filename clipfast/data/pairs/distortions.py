"""What happens to a picture on its way from page to page, one function each.

Each takes a picture and a generator of random numbers and returns a picture: the same for the same
numbers. `distort` chains them.

Source: Radford et al. 2021, appendix C.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence

import numpy as np
from PIL import Image

_ANY = tuple(Image.Resampling)
# Pillow rotates by these alone.
_ROTATING = (Image.Resampling.NEAREST, Image.Resampling.BILINEAR, Image.Resampling.BICUBIC)

# Of the picture's area, the least that a crop leaves; and the most that the crop's aspect differs
# from the picture's, as a logarithm.
LEAST_AREA, MOST_ASPECT = 0.5, 0.25
# The long side that a picture is brought to, in pixels.
SIDES = (24, 256)
MOST_DEGREES = 8.0
QUALITIES = (15, 95)
# Of hue a part of the circle, of saturation and value factors, of value also an offset.
MOST_HUE, MOST_SATURATION, MOST_VALUE, MOST_OFFSET = 0.07, 0.4, 0.3, 20.0

# Of the picture's sides, the most that a zoom out puts around it.
MOST_MARGIN = 0.3

_CHANCES = {"crop": 0.7, "zoom_out": 0.4, "rescale": 0.8, "rotate": 0.5, "jitter": 0.6, "jpeg": 0.6}


def distort(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Some of the distortions, in the order in which a page makes them.

    Args:
        image: RGB.
        rng: what the result depends on beside the picture.

    Returns:
        RGB, of another size.
    """
    for step in (crop, zoom_out, rescale, rotate, jitter, jpeg):
        if rng.random() < _CHANCES[step.__name__]:
            image = step(image, rng)
    return image


def crop(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """A part of the picture, anywhere in it, of another aspect.

    Args:
        image: RGB.
        rng: see `distort`.
    """
    area = rng.uniform(LEAST_AREA, 1.0)
    aspect = math.exp(rng.uniform(-MOST_ASPECT, MOST_ASPECT))
    width = min(1.0, math.sqrt(area * aspect)) * image.width
    height = min(1.0, math.sqrt(area / aspect)) * image.height
    left = rng.uniform(0, image.width - width)
    top = rng.uniform(0, image.height - height)
    box = (left, top, left + width, top + height)
    return image.resize(_size(width, height), interpolation(rng), box=box)


def zoom_out(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """The picture anywhere on a larger canvas of one colour.

    Args:
        image: RGB.
        rng: see `distort`.
    """
    more = rng.uniform(0, MOST_MARGIN, 2)
    canvas = Image.new("RGB", _size(*(image.size * (1 + more))), _fill(rng))
    left, top = (rng.uniform(0, 1, 2) * (np.array(canvas.size) - image.size)).astype(int).tolist()
    canvas.paste(image, (left, top))
    return canvas


def rescale(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """The picture in another resolution, stretched a little.

    Args:
        image: RGB.
        rng: see `distort`.
    """
    side = math.exp(rng.uniform(math.log(SIDES[0]), math.log(SIDES[1])))
    scale = side / max(image.size)
    stretch = math.exp(rng.uniform(-MOST_ASPECT / 2, MOST_ASPECT / 2))
    size = _size(image.width * scale * stretch, image.height * scale / stretch)
    return image.resize(size, interpolation(rng))


def rotate(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """The picture turned a little, its corners filled or cut off.

    Args:
        image: RGB.
        rng: see `distort`.
    """
    degrees = rng.uniform(-MOST_DEGREES, MOST_DEGREES)
    expands = bool(rng.random() < 0.5)
    return image.rotate(
        degrees, interpolation(rng, _ROTATING), expand=expands, fillcolor=_fill(rng)
    )


def jitter(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Other hue, saturation and value.

    Args:
        image: RGB.
        rng: see `distort`.
    """
    turn = round(256 * rng.uniform(-MOST_HUE, MOST_HUE))
    saturation = rng.uniform(1 - MOST_SATURATION, 1 + MOST_SATURATION)
    value = rng.uniform(1 - MOST_VALUE, 1 + MOST_VALUE)
    offset = rng.uniform(-MOST_OFFSET, MOST_OFFSET)
    steps = np.arange(256)
    tables = (
        (steps + turn) % 256,
        np.clip(steps * saturation, 0, 255),
        np.clip(steps * value + offset, 0, 255),
    )
    table = np.concatenate(tables).astype(np.uint8).tolist()
    return image.convert("HSV").point(table).convert("RGB")


def jpeg(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """The picture as a JPEG file gives it back.

    Args:
        image: RGB.
        rng: see `distort`.
    """
    quality, subsampling = int(rng.integers(QUALITIES[0], QUALITIES[1] + 1)), rng.integers(3)
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality, subsampling=int(subsampling))
    return Image.open(file).convert("RGB")


def interpolation(
    rng: np.random.Generator, among: Sequence[Image.Resampling] = _ANY
) -> Image.Resampling:
    """One of Pillow's ways of resizing.

    Args:
        rng: see `distort`.
        among: to choose from.
    """
    return among[int(rng.integers(len(among)))]


def _fill(rng: np.random.Generator) -> tuple[int, ...]:
    """White, or any colour."""
    colour = tuple(rng.integers(0, 256, 3).tolist())
    return colour if rng.random() < 0.5 else (255, 255, 255)


def _size(width: float, height: float) -> tuple[int, int]:
    """Whole pixels, four at least."""
    return max(4, round(width)), max(4, round(height))
