"""Pairs of vectors that are alike: what all ways of finding them share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from clipfast.curate.engine.parts import arrow
from clipfast.curate.near.looks import products_of_pairs
from clipfast.curate.near.vectors import Vectors

# How far below the threshold pairs are shown, so that a person sees what it leaves out.
BELOW = 0.1
# Such pairs per range of vectors, the nearest ones.
_MOST_BELOW = 64
# Pairs of a range: 20 bytes each.
_MOST = 20_000_000
# What a product in float32 may be off by.
SLACK = 1e-4
# Vectors per range.
_ROWS = 16_384


@dataclass(frozen=True)
class Rows:
    """A range of the M vectors, whose pairs are looked for.

    Attributes:
        start: its first one.
        stop: the one behind its last.
    """

    start: int
    stop: int

    @property
    def part(self) -> str:
        """See ``clipfast.curate.engine.Item``."""
        return f"{self.start:012d}-{self.stop:012d}"


def row_ranges(vectors: int) -> list[Rows]:
    """Ranges of equal size that hold all vectors.

    Args:
        vectors: M.
    """
    starts = range(0, vectors, _ROWS)
    return [Rows(start, min(start + _ROWS, vectors)) for start in starts]


def similarities(vectors: Vectors, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """``[P]`` float32: similarity of pairs, the same bits on every machine.

    With mirrored pictures it is the largest of: both as they are, the first mirrored, the second
    mirrored.

    Args:
        vectors: of the pictures.
        first: ``[P]``, numbers of vectors.
        second: ``[P]``, of the others.
    """
    found = np.empty(len(first), np.float32)
    for start in range(0, len(first), 1 << 16):
        part = slice(start, start + (1 << 16))
        found[part] = _similarities(vectors, first[part], second[part])
    return found


def _similarities(vectors: Vectors, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    one, other = (vectors.vectors[rows] for rows in (first, second))
    found = products_of_pairs(one, other, vectors.looks)
    if vectors.mirrored:
        flipped = (vectors.flipped[rows] for rows in (first, second))
        for side, mirror in zip((other, one), flipped, strict=True):
            found = np.maximum(found, products_of_pairs(side, mirror, vectors.looks))
    return found


class Collected:
    """Pairs of a range: all at or above a threshold, and the nearest ones below it.

    Args:
        vectors: of the pictures.
        threshold: the lowest one that was asked for.

    Attributes:
        floor: similarity that a pair must have to be of use.
    """

    def __init__(self, vectors: Vectors, threshold: float) -> None:
        self.floor = threshold - BELOW
        self._vectors, self._threshold = vectors, threshold
        self._above: list[tuple[np.ndarray, ...]] = []
        self._below = tuple(np.empty(0, kind) for kind in (np.int64, np.int64, np.float32))
        self._count = 0

    def add(self, first: np.ndarray, second: np.ndarray) -> None:
        """Take in candidates.

        Args:
            first: ``[P]`` int64, numbers of vectors.
            second: ``[P]`` int64, larger ones.

        Raises:
            ValueError: there are more than a range may have.
        """
        alike = similarities(self._vectors, first, second)
        is_pair = alike >= np.float32(self._threshold)
        self._above.append((first[is_pair], second[is_pair], alike[is_pair]))
        self._count += int(is_pair.sum())
        if self._count > _MOST:
            raise ValueError(
                f"more than {_MOST:,} pairs among few pictures have a similarity of "
                f"{self._threshold:g} or more: raise --threshold"
            )
        below = ~is_pair & (alike >= self.floor)
        columns = (first[below], second[below], alike[below])
        joined = [np.concatenate(both) for both in zip(self._below, columns, strict=True)]
        order = np.lexsort((joined[1], joined[0], -joined[2]))[:_MOST_BELOW]
        self._below = tuple(column[order] for column in joined)
        if len(order) == _MOST_BELOW:
            self.floor = max(self.floor, float(self._below[2][-1]))

    def table(self) -> Any:
        """Columns first, second and similarity, rising."""
        pieces = [*self._above, self._below]
        first, second, alike = (np.concatenate(column) for column in zip(*pieces, strict=True))
        order = np.lexsort((second, first))
        pa = arrow()
        return pa.table(
            {
                "first": pa.array(first[order], pa.int64()),
                "second": pa.array(second[order], pa.int64()),
                "similarity": pa.array(alike[order], pa.float32()),
            }
        )
