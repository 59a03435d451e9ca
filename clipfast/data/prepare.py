"""What the decoder is given: an image as it is, or as Pillow reads it where DALI would not.

DALI drops transparency, refuses or misreads rarer forms, and a refusal ends its pipeline. Such
images are few in web data and are recognised by their headers (``clipfast.data.plain``).
"""

import io

import numpy as np
from PIL import UnidentifiedImageError

from clipfast.data.plain import plain_size
from clipfast.data.rgb import open_rgb
from clipfast.data.unreadable import why_broken, why_unreadable


def prepare(encoded: bytes) -> np.ndarray:
    """Bring an encoded image into a form that the decoder reads as Pillow does.

    Args:
        encoded: the whole file, of any format in ``clipfast.data.fields.FORMATS``.

    Returns:
        uint8 ``[N]``: the file itself, without a copy, where it is plain; else the same picture as
        an opaque BMP, orientation applied.

    Raises:
        ValueError: Pillow cannot read it; says why.
    """
    if plain_size(encoded):
        return np.frombuffer(encoded, dtype=np.uint8)
    buffer = io.BytesIO()
    try:
        open_rgb(encoded).save(buffer, "BMP")
    except UnidentifiedImageError:
        raise ValueError(why_unreadable(encoded)) from None
    except Exception as error:  # Pillow raises many kinds, its own bomb error among them
        raise ValueError(why_broken(encoded, error)) from error
    return np.frombuffer(buffer.getvalue(), dtype=np.uint8)
