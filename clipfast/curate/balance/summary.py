"""Head and tail of queries, before and after."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

# Of the largest queries, so many are named.
_NAMED = 5


def summary(texts: Sequence[str], before: np.ndarray, after: np.ndarray, at_most: int) -> list[str]:
    """Lines for people.

    Args:
        texts: Q queries.
        before: [Q] pairs of each.
        after: [Q] pairs of each that stay.
        at_most: t.
    """
    head = before > at_most
    tail = ~head & (before > 0)
    lines = [
        f"head: {int(head.sum()):,} queries of more than {at_most:,} pairs, "
        f"{int(before[head].sum()):,} matches before, {int(after[head].sum()):,} after",
        f"tail: {int(tail.sum()):,} queries of 1 to {at_most:,} pairs, "
        f"{int(before[tail].sum()):,} matches before, {int(after[tail].sum()):,} after",
        f"{int((before == 0).sum()):,} queries stand in no caption",
    ]
    order = np.lexsort((np.arange(len(before)), -before))[:_NAMED]
    named = [f"{texts[q]} {before[q]:,} -> {after[q]:,}" for q in order.tolist() if before[q]]
    return [*lines, "largest: " + ", ".join(named)] if named else lines
