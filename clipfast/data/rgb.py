"""Pictures of any mode as a viewer shows them: upright, RGB, transparency on white."""

import io
from functools import cache

import numpy as np
from PIL import Image, ImageFile, ImageOps

from clipfast.data.fields import FORMATS
from clipfast.data.pngkey import mend_key


@cache
def readable() -> tuple[str, ...]:
    """Those of ``clipfast.data.fields.FORMATS`` that this Pillow knows; older ones lack AVIF."""
    Image.init()
    return tuple(form for form in FORMATS if form in Image.OPEN)


def open_rgb(encoded: bytes) -> Image.Image:
    """Decode a picture as it is shown.

    Args:
        encoded: a file of one of ``clipfast.data.fields.FORMATS``.

    Returns:
        Mode RGB, orientation applied, transparency laid on white.

    Raises:
        ValueError: see ``to_rgb``; broken files raise Pillow's own errors.
    """
    with Image.open(io.BytesIO(encoded), formats=readable()) as image:
        return shown(image, encoded)


def shown(image: ImageFile.ImageFile, encoded: bytes) -> Image.Image:
    """The same of a picture that is open already.

    Args:
        image: as opened, before it is loaded.
        encoded: its file.
    """
    if image.format == "PNG":
        mend_key(image, encoded)
    image.load()
    try:
        upright = ImageOps.exif_transpose(image)
    except Exception:  # Pillow's reader of EXIF raises many kinds, and the picture is sound
        return to_rgb(image)
    return to_rgb(upright)


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert any mode to RGB as a viewer would: transparency on white, 16 bits to 8.

    Raises:
        ValueError: the mode has no defined range (32-bit integers beyond 16 bits, floats).
    """
    if image.mode.startswith("I"):
        return _from_16_bits(image)
    if image.mode == "F":
        raise ValueError("image of mode F (floats) has no defined range")
    if _transparent(image):
        # By way of RGBA alone: to RGB Pillow drops the transparency of a palette, with a warning.
        layer = image.convert("RGBA")
        white = Image.new("RGBA", layer.size, "white")
        return Image.alpha_composite(white, layer).convert("RGB")
    return image.convert("RGB")


def _from_16_bits(image: Image.Image) -> Image.Image:
    """Pillow clips 16-bit grey at 255 instead of scaling it."""
    grey = np.asarray(image)
    if grey.size and (grey.min() < 0 or grey.max() > 65535):
        raise ValueError(f"image of mode {image.mode} exceeds 16 bits")
    scaled = (grey.astype(np.uint16) >> 8).astype(np.uint8)
    # One grey may be the transparent one.
    scaled[grey == image.info.get("transparency", -1)] = 255
    return Image.fromarray(scaled).convert("RGB")


def _transparent(image: Image.Image) -> bool:
    return "A" in image.getbands() or "a" in image.getbands() or "transparency" in image.info
