"""Arithmetic with stretches of time: what was busy, what two did at once, what one did alone."""

from collections.abc import Iterable

Interval = tuple[float, float]


def union(intervals: Iterable[Interval]) -> list[Interval]:
    """The same time in stretches that do not touch, in order.

    Args:
        intervals: start and end of each, in any order; they may overlap.
    """
    merged: list[Interval] = []
    for start, end in sorted(intervals):
        if end <= start:
            continue
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], end))
        else:
            merged.append((start, end))
    return merged


def both(a: Iterable[Interval], b: Iterable[Interval]) -> list[Interval]:
    """The time that lies in both.

    Args:
        a: as from ``union``.
        b: likewise.
    """
    first, second = list(a), list(b)
    found: list[Interval] = []
    i = j = 0
    while i < len(first) and j < len(second):
        start, end = max(first[i][0], second[j][0]), min(first[i][1], second[j][1])
        if start < end:
            found.append((start, end))
        if first[i][1] < second[j][1]:
            i += 1
        else:
            j += 1
    return found


def without(a: Iterable[Interval], b: Iterable[Interval]) -> list[Interval]:
    """The time of ``a`` that lies outside ``b``.

    Args:
        a: as from ``union``.
        b: likewise.
    """
    taken = list(b)
    found: list[Interval] = []
    j = 0
    for start, end in a:
        while j < len(taken) and taken[j][1] <= start:
            j += 1
        k = j
        while k < len(taken) and taken[k][0] < end:
            if taken[k][0] > start:
                found.append((start, taken[k][0]))
            start = max(start, taken[k][1])
            k += 1
        if start < end:
            found.append((start, end))
    return found


def total(intervals: Iterable[Interval]) -> float:
    """Their length together, where none overlap.

    Args:
        intervals: as from ``union``.
    """
    return sum(end - start for start, end in intervals)
