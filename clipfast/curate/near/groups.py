"""Groups of pictures that are alike, and which picture of a group stays."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

KEEPS = ("largest", "first", "longest-caption")


@dataclass(frozen=True, eq=False)
class Pairs:
    """Pairs of the N pictures that decode, by their places.

    Attributes:
        first: ``[P]`` int64.
        second: ``[P]`` int64, larger ones.
        similarity: ``[P]`` float32.
    """

    first: np.ndarray
    second: np.ndarray
    similarity: np.ndarray

    def __len__(self) -> int:
        return len(self.first)

    def at_least(self, threshold: float) -> Pairs:
        """Those of at least such a similarity."""
        return self.take(self.similarity >= np.float32(threshold))

    def take(self, which: np.ndarray) -> Pairs:
        """Some of them, by a mask or by their places."""
        return Pairs(self.first[which], self.second[which], self.similarity[which])


def join_tables(tables: list[Any], number: np.ndarray) -> Pairs:
    """Pairs of pictures, of pairs of vectors.

    Args:
        tables: with the columns first, second and similarity; a pair may stand in several.
        number: ``[N]``, the vector of each picture.

    Returns:
        Each pair once, sorted. Pictures of one vector are pairs of the first of them, of similarity
        1.
    """
    names = ("first", "second", "similarity")
    none = [np.empty(0, kind) for kind in (np.int64, np.int64, np.float32)]
    columns = [
        np.concatenate([nothing, *(table[name].to_numpy() for table in tables)])
        for name, nothing in zip(names, none, strict=True)
    ]
    keys = columns[0] * (int(number.max(initial=0)) + 1) + columns[1]
    _, once = np.unique(keys, return_index=True)
    _, places = np.unique(number, return_index=True)
    again = np.setdiff1d(np.arange(len(number)), places)
    first = np.concatenate([places[columns[0][once]], places[number[again]]])
    second = np.concatenate([places[columns[1][once]], again])
    alike = np.concatenate([columns[2][once], np.ones(len(again), np.float32)])
    order = np.lexsort((second, first))
    return Pairs(first[order], second[order], alike[order])


@dataclass(frozen=True, eq=False)
class Groups:
    """Pictures that pairs connect.

    Attributes:
        pairs: that connect them.
        group: ``[N]``, of each picture.
        sizes: ``[G]``, pictures of each group.
    """

    pairs: Pairs
    group: np.ndarray
    sizes: np.ndarray

    @property
    def count(self) -> int:
        """Groups of at least two."""
        return int((self.sizes > 1).sum())

    @property
    def largest(self) -> list[int]:
        """Sizes of the ten largest groups of at least two."""
        return np.sort(self.sizes[self.sizes > 1])[::-1][:10].tolist()


def connect(pairs: Pairs, pictures: int) -> Groups:
    """Groups of pictures that pairs connect, directly or by way of others.

    Args:
        pairs: of similar pictures.
        pictures: N.

    Raises:
        ValueError: scipy is not installed.
    """
    try:
        from scipy.sparse import coo_array
        from scipy.sparse.csgraph import connected_components
    except ImportError:
        raise ValueError(
            "groups of near duplicates are found by scipy, which is not installed: "
            "pip install 'clipfast[curate]'"
        ) from None
    ones = np.ones(len(pairs), np.int8)
    graph = coo_array((ones, (pairs.first, pairs.second)), (pictures, pictures))
    count, group = connected_components(graph, directed=False)
    return Groups(pairs, group, np.bincount(group, minlength=count))


def thin(
    groups: Groups, number: np.ndarray, worth: np.ndarray, most: int
) -> tuple[np.ndarray, int]:
    """Which pictures go: all but one of each group.

    A group of more than `most` may be a chain, whose ends are not alike. There a picture goes only
    where it is a pair of one that stays.

    Args:
        groups: of the pictures.
        number: ``[N]``, the vector of each picture.
        worth: ``[N]``: of a group the largest one stays, and of equal ones the first.
        most: pictures of a group that is no chain.

    Returns:
        ``[N]`` bool, and how many groups have more.
    """
    # By group, then the best first.
    order = np.lexsort((np.arange(len(worth)), -worth, groups.group))
    goes = np.zeros(len(worth), bool)
    goes[order[1:]] = groups.group[order[1:]] == groups.group[order[:-1]]
    in_chain = groups.sizes[groups.group] > most
    if in_chain.any():
        ranked = order[in_chain[order]]
        goes[ranked] = _covered(groups.pairs.take(in_chain[groups.pairs.first]), number, ranked)
    return goes, int((groups.sizes > most).sum())


def _covered(pairs: Pairs, number: np.ndarray, ranked: np.ndarray) -> np.ndarray:
    """Best first: a picture stays unless it is like one that stays, by their vectors."""
    first, second = number[pairs.first], number[pairs.second]
    one, other = np.concatenate([first, second]), np.concatenate([second, first])
    order = np.argsort(one, kind="stable")
    one, other = one[order], other[order]
    mine = number[ranked]
    starts, ends = (np.searchsorted(one, mine, side=side) for side in ("left", "right"))
    covered = np.zeros(int(number.max(initial=0)) + 1, bool)
    goes = np.zeros(len(ranked), bool)
    for place, (vector, start, end) in enumerate(zip(mine, starts, ends, strict=True)):
        goes[place] = covered[vector]
        if not covered[vector]:
            covered[vector] = True
            covered[other[start:end]] = True
    return goes
