"""JPEGs decoded at 1/2, 1/4 or 1/8 of their size, where nothing larger is needed.

libjpeg leaves out high frequencies before it makes pixels of the others: most of the work behind
Huffman decoding is saved, and most of the resize. Pixels differ from those of the whole picture.
"""

import io

import numpy as np
from PIL import Image

from clipfast.data.rgb import shown
from clipfast.data.unreadable import why_broken

_JPEG = b"\xff\xd8\xff"
_FACTORS = (8, 4, 2)


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


def decode_scaled(encoded: bytes, size: tuple[int, int], least_side: float) -> np.ndarray | None:
    """A large JPEG in a smaller size.

    Args:
        encoded: the whole file, plain (``clipfast.data.plain``).
        size: its width and height, pixels.
        least_side: that its short side must still have, pixels.

    Returns:
        uint8 ``[N]``: an upright bitmap, as ``clipfast.data.prepare`` makes them; None where the
        file is no JPEG or not large enough.

    Raises:
        ValueError: it cannot be decoded; says why.
    """
    factor = factor_of(size, least_side)
    if factor == 1 or not encoded.startswith(_JPEG):
        return None
    buffer = io.BytesIO()
    try:
        with Image.open(io.BytesIO(encoded), formats=("JPEG",)) as image:
            # Pillow takes the largest divisor that leaves at least this.
            image.draft(None, (size[0] // factor, size[1] // factor))
            shown(image, encoded).save(buffer, "BMP")
    except Exception as error:  # Pillow raises many kinds
        raise ValueError(why_broken(encoded, error)) from error
    return np.frombuffer(buffer.getbuffer(), np.uint8)
