"""How far groups lie apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Disparity:
    """Between the groups of one column.

    Attributes:
        metric: that is compared.
        highest: number of the group with the largest value.
        lowest: of that with the smallest.
        gap: difference of these two.
        ratio: the smallest by the largest; None where both are 0.
        apart: pairs of groups whose intervals do not overlap, the lower first. None where the
            metric has no interval.
    """

    metric: str
    highest: int
    lowest: int
    gap: float
    ratio: float | None
    apart: tuple[tuple[int, int], ...] | None


def disparity(
    metric: str,
    values: Sequence[float | None],
    intervals: Sequence[tuple[float, float] | None],
) -> Disparity | None:
    """Compare groups.

    Args:
        metric: name of what is compared.
        values: of G groups; None where it is undefined.
        intervals: of each; None where there is none.

    Returns:
        None where fewer than two groups have a value. Of equal values the first group is named.
    """
    known = [(value, group) for group, value in enumerate(values) if value is not None]
    if len(known) < 2:
        return None
    high, highest = max(known, key=lambda pair: pair[0])
    low, lowest = min(known, key=lambda pair: pair[0])
    bounds = [(group, interval) for group, interval in enumerate(intervals) if interval]
    apart = tuple(
        (below, above)
        for below, (_, its_high) in bounds
        for above, (its_low, _) in bounds
        if its_high < its_low
    )
    return Disparity(
        metric,
        highest,
        lowest,
        high - low,
        low / high if high else None,
        apart if bounds else None,
    )
