"""A part of a set, for measures that are to be quick."""

from __future__ import annotations

import numpy as np

_SEED = 0


def drawn(images: int, limit: int) -> np.ndarray:
    """Places of a random part, ascending; the same on every rank and in every run.

    Args:
        images: how many there are.
        limit: how many are drawn, at most; 0: all.
    """
    if not limit or limit >= images:
        return np.arange(images)
    return np.sort(np.random.default_rng(_SEED).permutation(images)[:limit])
