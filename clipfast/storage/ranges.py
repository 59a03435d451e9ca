"""Ranges of an object that are read as one, since they lie close together."""

import numpy as np


def join(ranges: np.ndarray, gap: int) -> tuple[np.ndarray, np.ndarray]:
    """Join ranges.

    Args:
        ranges: ``[N, 2]`` int64, offset and size, in any order; they may overlap.
        gap: bytes between two of them that are taken too.

    Returns:
        ``[R, 2]`` int64, offset and size, rising; and ``[N]``, the row in which each one lies.
    """
    if not len(ranges):
        return np.empty((0, 2), np.int64), np.empty(0, np.int64)
    order = np.argsort(ranges[:, 0], kind="stable")
    starts = ranges[order, 0]
    stops = np.maximum.accumulate(ranges[order].sum(1))
    begins = np.append(True, starts[1:] > stops[:-1] + gap)
    first = np.flatnonzero(begins)
    rows = np.empty(len(ranges), np.int64)
    rows[order] = np.cumsum(begins) - 1
    ends = stops[np.append(first[1:], len(ranges)) - 1]
    return np.stack([starts[first], ends - starts[first]], 1), rows
