"""The transparent colour of a PNG, where Pillow compares it with samples of another depth."""

import io

import numpy as np
from PIL import Image, ImageFile

_BITS = 24


def mend_key(image: ImageFile.ImageFile, encoded: bytes) -> None:
    """Bring the key of a just opened PNG to the depth of its pixels, in place.

    A key has the depth of the file. Pillow scales grey of 2 and 4 bits to 8 and takes the upper 8
    of RGB's 16, and compares the result with the key as it stands.

    Args:
        image: as opened, before it is loaded.
        encoded: its file.
    """
    key = image.info.get("transparency")
    bits = encoded[_BITS]
    if isinstance(key, str):
        # A text chunk of that name, which Pillow puts at the same place.
        del image.info["transparency"]
    elif image.mode == "L" and bits < 8 and isinstance(key, int):
        image.info["transparency"] = key * 255 // ((1 << bits) - 1)
    elif image.mode == "RGB" and bits == 16 and isinstance(key, tuple):
        del image.info["transparency"]
        upper = np.asarray(image).astype(np.uint16)
        matches = (upper << 8 | _lower_bytes(encoded)) == np.array(key, np.uint16)
        image.putalpha(Image.fromarray(np.where(matches.all(-1), 0, 255).astype(np.uint8)))


def _lower_bytes(encoded: bytes) -> np.ndarray:
    """``[H, W, 3]``, of RGB of 16 bits: in the other byte order Pillow takes the other half."""
    with Image.open(io.BytesIO(encoded), formats=("PNG",)) as image:
        image.tile = [tile._replace(args="RGB;16L") for tile in image.tile]
        image.info.pop("transparency")
        return np.asarray(image).astype(np.uint16)
