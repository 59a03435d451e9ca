"""The part of a picture that is no margin of one colour."""

from __future__ import annotations

import numpy as np
from PIL import Image

# Looked at in this size: a margin is not a matter of single pixels.
_SIDE = 128
# By how much a pixel may differ from a margin's colour, of 255: what a JPEG leaves of one.
_TOLERANCE = 24
# A window, a frame, the paper within it, and what a coder leaves between them.
_TIMES = 6
# Of the width and the height, the least that is left.
_LEAST = 0.1
# Rows that are looked at together: most pictures have few that are margin.
_ROWS = 8


def without_margins(image: Image.Image, times: int = _TIMES) -> Image.Image:
    """Cut off rows and columns at the sides that have one colour, as a frame or a letterbox does.

    A picture that is nearly empty stays as it is.

    Args:
        image: RGB.
        times: as often at most, while there is something to cut.
    """
    small = image.copy()
    small.thumbnail((_SIDE, _SIDE), Image.Resampling.BOX, reducing_gap=None)
    pixels = np.asarray(small).astype(np.int16)
    top, left, bottom, right = 0, 0, *pixels.shape[:2]
    for _ in range(times):
        inside = pixels[top:bottom, left:right]
        above, below = _margins(inside)
        before, behind = _margins(inside.swapaxes(0, 1))
        if not above + below + before + behind:
            break
        top, bottom, left, right = top + above, bottom - below, left + before, right - behind
        if bottom - top < _LEAST * small.height or right - left < _LEAST * small.width:
            return image
    if (top, left, bottom, right) == (0, 0, *pixels.shape[:2]):
        return image
    across, down = image.width / small.width, image.height / small.height
    return image.crop(
        (round(left * across), round(top * down), round(right * across), round(bottom * down))
    )


def _margins(rows: np.ndarray) -> tuple[int, int]:
    """How many of the first and of the last rows have the colour of the outermost one."""
    return _same(rows), _same(rows[::-1])


def _same(rows: np.ndarray) -> int:
    # Where a frame was cut off, its last pixels are half of it, on all four sides.
    ends = slice(1, -1) if rows.shape[1] > _ROWS else slice(None)
    # The median, doubled: whole numbers, and a tenth of the time of numpy's own.
    ranked = np.sort(rows[0], axis=0)
    twice = ranked[(len(ranked) - 1) // 2] + ranked[len(ranked) // 2]
    low, high = (twice + 1) // 2 - _TOLERANCE, twice // 2 + _TOLERANCE
    for start in range(0, len(rows), _ROWS):
        part = rows[start : start + _ROWS]
        differs = ((part < low) | (part > high)).any(axis=2)[:, ends].any(axis=1)
        if differs.any():
            return start + int(differs.argmax())
    return 0
