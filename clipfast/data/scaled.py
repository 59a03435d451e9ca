"""JPEGs decoded at 1/2, 1/4 or 1/8 of their size, where nothing larger is needed.

libjpeg leaves out high frequencies before it makes pixels of the others: most of the work behind
Huffman decoding is saved, and most of the resize. Pixels differ from those of the whole picture.
"""

import io
import sys
from typing import NamedTuple

import numpy as np
from PIL import Image

from clipfast.data.rgb import shown
from clipfast.data.unreadable import why_broken

_JPEG = b"\xff\xd8\xff"
_FACTORS = (8, 4, 2)
_ORIENTATION = 0x0112  # of EXIF; 1 is upright


class Scaled(NamedTuple):
    """A picture in a smaller size.

    Attributes:
        bitmap: uint8 ``[N]``, upright, as ``clipfast.data.prepare`` makes them.
        fill: which part of the bitmap's height and width the picture fills. A side is rounded up to
            whole pixels, of which the last then lies partly outside the picture.
    """

    bitmap: np.ndarray
    fill: tuple[float, float]


def factor_of(size: tuple[int, int], least_side: float) -> int:
    """How many times smaller a picture may be decoded.

    It depends on the picture alone and not on its crop, so that whether a picture is broken does
    not depend on the epoch.

    Args:
        size: width and height, pixels.
        least_side: that its short side must still have, pixels.

    Returns:
        1, 2, 4 or 8.
    """
    short = min(size)
    return next((factor for factor in _FACTORS if short >= factor * least_side), 1)


def decode_scaled(encoded: bytes, size: tuple[int, int], least_side: float) -> Scaled | None:
    """A large JPEG in a smaller size.

    Args:
        encoded: the whole file, plain (``clipfast.data.plain``).
        size: its width and height, pixels.
        least_side: that its short side must still have, pixels.

    Returns:
        The picture; None where the file is no JPEG, not large enough or larger than Pillow takes,
        and where its EXIF would turn sides that are no multiples of the factor.

    Raises:
        ValueError: it cannot be decoded; says why.
    """
    factor = factor_of(size, least_side)
    # Pillow refuses larger ones, which other decoders take.
    is_huge = size[0] * size[1] > (Image.MAX_IMAGE_PIXELS or sys.maxsize)
    if factor == 1 or is_huge or not encoded.startswith(_JPEG):
        return None
    buffer = io.BytesIO()
    try:
        with Image.open(io.BytesIO(encoded), formats=("JPEG",)) as image:
            # Pillow takes the largest divisor that leaves at least this.
            image.draft(None, (size[0] // factor, size[1] // factor))
            fill = size[1] / factor / image.height, size[0] / factor / image.width
            if fill != (1, 1) and _is_turned(image):
                return None
            shown(image, encoded).save(buffer, "BMP")
    except Exception as error:  # Pillow raises many kinds
        raise ValueError(why_broken(encoded, error)) from error
    return Scaled(np.frombuffer(buffer.getbuffer(), np.uint8), fill)


def _is_turned(image: Image.Image) -> bool:
    try:
        return image.getexif().get(_ORIENTATION, 1) != 1
    except Exception:  # of many kinds; `shown` leaves such a picture as it is
        return False
