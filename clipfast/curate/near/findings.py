"""What was found at each threshold, and the pairs that a page shows of it."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from clipfast.curate.near.groups import Groups, Pairs

_BESIDE = 20
_BANDS = 8
_PER_BAND = 6


@dataclass(frozen=True, eq=False)
class AtThreshold:
    """What one threshold finds.

    Attributes:
        threshold: the smallest similarity of a pair.
        groups: that its pairs connect.
        goes: ``[N]`` bool, which pictures go.
        chains: groups that are thinned pair by pair.
    """

    threshold: float
    groups: Groups
    goes: np.ndarray
    chains: int


def just_above(pairs: Pairs, threshold: float) -> Pairs:
    """The pairs whose similarity is the least at or above a threshold.

    Args:
        pairs: all.
        threshold: of similarity.
    """
    above = np.flatnonzero(pairs.similarity >= np.float32(threshold))
    return pairs.take(_least(above, pairs.similarity[above]))


def just_below(pairs: Pairs, threshold: float) -> Pairs:
    """The pairs whose similarity is the largest below a threshold; see ``just_above``."""
    below = np.flatnonzero(pairs.similarity < np.float32(threshold))
    return pairs.take(_least(below, -pairs.similarity[below]))


def _least(places: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Places of the smallest values; of equal ones, which a hash has many of, some are drawn."""
    draw = np.random.default_rng(0).random(len(places))
    return places[np.lexsort((draw, values))][:_BESIDE]


def bands(pairs: Pairs, lowest: float) -> list[tuple[float, float, int, Pairs]]:
    """Bands of similarity of equal width, from a threshold to 1, with some pairs of each.

    Args:
        pairs: all.
        lowest: threshold.

    Returns:
        Ends, number of pairs, and pairs that were drawn, in the order of their similarity.
    """
    edges = np.linspace(lowest, 1, _BANDS + 1).astype(np.float32)
    found = []
    for number, (low, high) in enumerate(pairwise(edges)):
        is_last = number == _BANDS - 1
        inside = pairs.similarity >= low
        inside &= (pairs.similarity <= high) if is_last else (pairs.similarity < high)
        places = np.flatnonzero(inside)
        drawn = np.random.default_rng(number).permutation(len(places))[:_PER_BAND]
        some = pairs.take(places[drawn])
        order = np.argsort(some.similarity, kind="stable")
        found.append((float(low), float(high), len(places), some.take(order)))
    return found


def members(groups: Groups, most_groups: int, most: int) -> list[tuple[int, np.ndarray]]:
    """The largest groups: size, and the places of their first pictures.

    Args:
        groups: of the pictures.
        most_groups: that are named.
        most: pictures of each.
    """
    largest = np.argsort(-groups.sizes, kind="stable")[:most_groups]
    return [
        (int(groups.sizes[group]), np.flatnonzero(groups.group == group)[:most])
        for group in largest.tolist()
        if groups.sizes[group] > 1
    ]
