"""Copies of a picture as they are met, by means that no training has used.

Three other coders, two watermarks, a blur, a palette, a frame, a letterbox, the picture in a window
that was photographed off a screen; and its mirror image, which is a duplicate to some.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont, ImageOps

Copy = Callable[[Image.Image, np.random.Generator], Image.Image]


def _through(image: Image.Image, kind: str, **options: object) -> Image.Image:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return Image.open(file).convert("RGB")


def webp(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """WebP of quality 20 to 60."""
    return _through(image, "WEBP", quality=int(rng.integers(20, 61)))


def avif(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """AVIF of quality 25 to 60."""
    return _through(image, "AVIF", quality=int(rng.integers(25, 61)))


def jpeg2000(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """JPEG 2000, a twentieth to a sixtieth of the bytes."""
    rate = int(rng.integers(20, 61))
    return _through(image, "JPEG2000", quality_mode="rates", quality_layers=[rate])


def words(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Words across the picture, half transparent."""
    width, height = image.size
    layer = Image.new("RGBA", image.size, (0, 0, 0, 0))
    font = ImageFont.load_default(max(8, height // 6))
    fill = (255, 255, 255, 150) if rng.random() < 0.5 else (60, 60, 60, 150)
    place = (rng.uniform(0, 0.3) * width, rng.uniform(0.3, 0.7) * height)
    ImageDraw.Draw(layer).text(
        place, "sample.org", font=font, fill=fill, stroke_width=1, stroke_fill=(0, 0, 0, 120)
    )
    return Image.alpha_composite(image.convert("RGBA"), layer).convert("RGB")


def logo(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """A disc of any colour in a corner, a quarter of the short side wide."""
    side = max(4, min(image.size) // 4)
    right, low = rng.random(2) < 0.5
    left, top = (image.width - side) * int(right), (image.height - side) * int(low)
    marked = image.copy()
    ImageDraw.Draw(marked).ellipse((left, top, left + side, top + side), fill=_colour(rng))
    return marked


def blur(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """A Gaussian of 0.5% to 1.5% of the long side."""
    return image.filter(ImageFilter.GaussianBlur(max(image.size) * rng.uniform(0.005, 0.015)))


def palette(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """8, 16 or 32 colours, dithered, as a GIF has them."""
    return image.quantize(int(rng.choice([8, 16, 32]))).convert("RGB")


def frame(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """A frame of any colour, 3% to 8% of the long side."""
    return ImageOps.expand(
        image, max(1, round(max(image.size) * rng.uniform(0.03, 0.08))), _colour(rng)
    )


def letterbox(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Bars, black or white, that make a square of it; of a square, something wider."""
    side = max(image.size)
    is_square = min(image.size) >= 0.9 * side
    size = (round(1.25 * side), side) if is_square else (side, side)
    return ImageOps.pad(image, size, color=(0, 0, 0) if rng.random() < 0.5 else (255, 255, 255))


def screen(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """In a window with a bar on top, at 77% of its size, as JPEG of quality 75."""
    width, height = image.size
    margin, bar = round(0.04 * max(width, height)), round(0.08 * height) + 1
    window = Image.new("RGB", (width + 2 * margin, height + margin + bar), (236, 236, 236))
    ImageDraw.Draw(window).rectangle((0, 0, window.width, bar - 1), fill=(90, 90, 110))
    window.paste(image, (margin, bar))
    size = (round(window.width * 0.77), round(window.height * 0.77))
    return _through(window.resize(size, Image.Resampling.BILINEAR), "JPEG", quality=75)


def mirror(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Left and right exchanged."""
    return ImageOps.mirror(image)


def _colour(rng: np.random.Generator) -> tuple[int, ...]:
    return tuple(rng.integers(0, 256, 3).tolist())


# Those that are duplicates to everyone.
COPIES: Mapping[str, Copy] = {
    each.__name__: each
    for each in (
        webp, avif, jpeg2000, words, logo, blur, palette, frame, letterbox, screen,
    )
}  # fmt: skip


def copies_of(kind: str, pictures: list[np.ndarray], seed: int = 0) -> list[np.ndarray]:
    """A copy of each picture, the same whenever it is asked for.

    Args:
        kind: of `COPIES`, or "mirror".
        pictures: ``[H, W, 3]`` uint8 each.
        seed: of all that is random.
    """
    make = mirror if kind == "mirror" else COPIES[kind]
    return [
        np.asarray(make(Image.fromarray(pixels), np.random.default_rng([seed, i])))
        for i, pixels in enumerate(pictures)
    ]
