"""Similarity of pictures that a detector looks at in several ways.

A row holds one vector of length 1 per look, one after the other: a picture with its margins, and
without them. The similarity of two rows is

    max over looks of (one_look . other_look)

since a copy keeps what one of the looks sees: words laid over it move its margins, a frame changes
all but what is within.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def split(rows: np.ndarray, looks: int) -> list[np.ndarray]:
    """The vectors of each look.

    Args:
        rows: ``[N, looks * D]``.
        looks: per row.

    Returns:
        ``[N, D]`` per look, without a copy.
    """
    return np.split(rows, looks, axis=1)


def products(one: np.ndarray, other: np.ndarray, looks: int) -> Tensor:
    """Similarity of each row with each, in float32.

    Args:
        one: ``[M, looks * D]``.
        other: ``[N, looks * D]``.
        looks: per row.

    Returns:
        ``[M, N]``.
    """
    found: Tensor | None = None
    for sides in zip(split(one, looks), split(other, looks), strict=True):
        left, right = (torch.from_numpy(side.astype(np.float32)) for side in sides)
        alike = left @ right.T
        found = alike if found is None else torch.maximum(found, alike, out=found)
    assert found is not None
    return found


def products_of_pairs(one: np.ndarray, other: np.ndarray, looks: int) -> np.ndarray:
    """Similarity of each row with the one beside it, in float64, where it is the same on every
    machine: products of two float16 are exact, and the sum rounds far below float32.

    Args:
        one: ``[P, looks * D]``.
        other: ``[P, looks * D]``.
        looks: per row.

    Returns:
        ``[P]``, -1 to 1.
    """
    both = one.astype(np.float64) * other.astype(np.float64)
    found: np.ndarray = both.reshape(len(both), looks, -1).sum(2).max(1)
    return np.clip(found, -1, 1)
