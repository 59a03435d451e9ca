"""Pictures of any mode as a viewer shows them: upright, RGB, transparency on white."""

import io
from functools import cache

import numpy as np
from PIL import ExifTags, Image, ImageFile, ImageOps

from clipfast.data.fields import FORMATS
from clipfast.data.pngkey import mend_key

_PIXELS_OF_A_STRIP = 1 << 20


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
    return to_rgb(_upright(image))


def _upright(image: Image.Image) -> Image.Image:
    """Without a copy where nothing is to be turned."""
    try:
        if image.getexif().get(ExifTags.Base.Orientation, 1) == 1:
            return image
        return ImageOps.exif_transpose(image)
    except Exception:  # Pillow's reader of EXIF raises many kinds, and the picture is sound
        return image


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
        return _on_white(image)
    return image.convert("RGB")


def _on_white(image: Image.Image) -> Image.Image:
    """In strips, since three layers of a large picture would be four times its memory."""
    flat = Image.new("RGB", image.size)
    rows = max(1, _PIXELS_OF_A_STRIP // max(1, image.width))
    for top in range(0, image.height, rows):
        strip = image.crop((0, top, image.width, min(top + rows, image.height)))
        # By way of RGBA alone: to RGB Pillow drops the transparency of a palette, with a warning.
        layer = strip.convert("RGBA")
        white = Image.new("RGBA", layer.size, "white")
        flat.paste(Image.alpha_composite(white, layer).convert("RGB"), (0, top))
    return flat


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
