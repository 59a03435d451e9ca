"""Images with transparency, laid on white before they reach the decoder.

DALI drops an alpha channel when it decodes to RGB, which shows whatever colour lies under fully
transparent pixels. Such images are few in web data and are recognised by their headers alone.
"""

import io

import numpy as np

from clipfast.data.rgb import open_rgb

_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_COLOR_TYPE = 25
_PNG_WITH_ALPHA = (4, 6)
_WEBP_ALPHA_FLAG = 0x10


def has_alpha(encoded: bytes) -> bool:
    """Whether an encoded image declares transparency: PNG (alpha channel or tRNS) or WebP."""
    if encoded.startswith(_PNG) and len(encoded) > _PNG_COLOR_TYPE:
        return encoded[_PNG_COLOR_TYPE] in _PNG_WITH_ALPHA or _has_transparency_chunk(encoded)
    if encoded[:4] == b"RIFF" and encoded[8:12] == b"WEBP" and len(encoded) > 24:
        form = encoded[12:16]
        if form == b"VP8X":
            return bool(encoded[20] & _WEBP_ALPHA_FLAG)
        # A lossless stream: signature byte, 14 bits width, 14 bits height, then the alpha bit.
        return form == b"VP8L" and bool(encoded[24] & _WEBP_ALPHA_FLAG)
    return False


def flatten_alpha(encoded: bytes) -> np.ndarray:
    """Composite on white.

    Args:
        encoded: a PNG or WebP file with transparency.

    Returns:
        uint8 ``[N]``, the same picture as an opaque BMP, orientation applied.
    """
    buffer = io.BytesIO()
    open_rgb(encoded).save(buffer, "BMP")
    return np.frombuffer(buffer.getvalue(), dtype=np.uint8)


def _has_transparency_chunk(encoded: bytes) -> bool:
    """Walk the chunks up to the first image data; tRNS must come before it."""
    position = len(_PNG)
    while position + 8 <= len(encoded):
        length = int.from_bytes(encoded[position : position + 4], "big")
        kind = encoded[position + 4 : position + 8]
        if kind == b"tRNS":
            return True
        if kind == b"IDAT":
            return False
        position += 12 + length
    return False
