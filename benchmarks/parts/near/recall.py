"""Recall of copies at a rate of false positives, from the vectors of pictures and of their copies.

N pictures have N (N - 1) / 2 pairs of which each is a false positive if it is taken for a
duplicate; with K kinds of copies there are K N (N - 1) more, a copy and another picture. Pairs that
may be duplicates are left out of both.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from clipfast.curate.near.looks import products, products_of_pairs

RATES = (1e-6, 1e-5, 1e-4, 1e-3)
_ROWS = 512  # of similarities at a time


@dataclass(frozen=True)
class Curve:
    """What a detector finds.

    Attributes:
        negatives: pairs that were counted.
        thresholds: the lowest similarity at which the rate is kept, by rate.
        recall: by kind of copy, then by rate.
    """

    negatives: int
    thresholds: dict[float, float]
    recall: dict[str, dict[float, float]]

    def mean(self, rate: float) -> float:
        """Over the kinds, the mirror image left out.

        Args:
            rate: one of `RATES`.
        """
        return float(np.mean([by[rate] for kind, by in self.recall.items() if kind != "mirror"]))


def measure(
    originals: np.ndarray, copies: Mapping[str, np.ndarray], same: np.ndarray, looks: int = 1
) -> Curve:
    """Count.

    Args:
        originals: ``[N, D]``, a vector of length 1 per look.
        copies: by kind ``[N, D]``, likewise.
        same: ``[N, N]`` bool, pairs that may be duplicates.
        looks: of the detector.
    """
    kinds = [each for each in copies if each != "mirror"]
    n = len(originals)
    distinct = int((~same).sum())
    negatives = distinct // 2 + len(kinds) * distinct
    most = int(max(RATES) * negatives) + 1
    highest = _highest(originals, originals, same | np.tri(n, dtype=bool), most, looks)
    for kind in kinds:
        found = _highest(copies[kind], originals, same, most, looks)
        highest = np.sort(np.concatenate([highest, found]))[::-1][:most]
    thresholds = {rate: float(highest[int(rate * negatives)]) for rate in RATES}
    recall = {}
    for kind, vectors in copies.items():
        own = products_of_pairs(vectors, originals, looks)
        recall[kind] = {rate: float((own > t).mean()) for rate, t in thresholds.items()}
    return Curve(negatives, thresholds, recall)


def _highest(
    left: np.ndarray, right: np.ndarray, without: np.ndarray, count: int, looks: int
) -> np.ndarray:
    """The highest similarities, some pairs left out, falling."""
    kept = np.empty(0, np.float32)
    for start in range(0, len(left), _ROWS):
        rows = slice(start, start + _ROWS)
        found = products(left[rows], right, looks).numpy()[~without[rows]]
        if len(found) > count:
            found = np.partition(found, len(found) - count)[-count:]
        kept = np.sort(np.concatenate([kept, found]))[::-1][:count]
    return kept


def may_be_same(families: list[str], pictures: list[np.ndarray]) -> np.ndarray:
    """``[N, N]`` bool: pairs of one family, and pairs that are equal when both are shrunk to 32 x
    32 points, to 2 of 255 at the mean.

    Args:
        families: of each picture.
        pictures: ``[32, 32, 3]`` uint8 each.
    """
    _, family = np.unique(families, return_inverse=True)
    same = family[:, None] == family[None]
    flat = np.stack(pictures).reshape(len(pictures), -1).astype(np.float32)
    for i, row in enumerate(flat):
        same[i] |= np.abs(flat - row).mean(axis=1) < 2
    return same
