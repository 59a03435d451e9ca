"""Chances of pairs, and the draws that they are compared with."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

RULES = ("any", "rarest")


def chances(
    row: np.ndarray, query: np.ndarray, samples: int, taken: np.ndarray, rule: str = "any"
) -> np.ndarray:
    """The chance that a pair stays.

    ``any``: 1 - prod over its queries q of (1 - p_q), which is the chance that one of independent
    draws takes it. ``rarest``: max over q of p_q. A pair without a query has none.

    Args:
        row: [M] which pair holds a query, rising.
        query: [M] which query; rising for each pair, so that the sum has one order.
        samples: N.
        taken: [Q] float64, p of each query.
        rule: of ``RULES``.

    Returns:
        [N] float64.

    Raises:
        ValueError: there is no such rule.
    """
    chance = taken[query]
    if rule == "rarest":
        largest = np.zeros(samples)
        np.maximum.at(largest, row, chance)
        return largest
    if rule != "any":
        raise ValueError(f"no rule {rule!r}; there are {', '.join(RULES)}")
    with np.errstate(divide="ignore"):
        missed = np.log1p(-chance)
    # Added one after the other, in the order of the queries. -0.0 becomes 0.0.
    return -np.expm1(np.bincount(row, missed, minlength=samples)) + 0.0


def draws(seed: int, shard: str, keys: Sequence[str]) -> np.ndarray:
    """A number for each pair, which depends on nothing but its name.

    Args:
        seed: of all draws.
        shard: name of the tar, without its folder.
        keys: of its N samples. The second of one key has a number of its own.

    Returns:
        [N] float64, even over [0, 1): 53 bits of a BLAKE2b digest.
    """
    start = hashlib.blake2b(f"{seed}\n{shard}\n".encode("utf-8", "surrogateescape"), digest_size=8)
    before: dict[str, int] = {}
    numbers = np.empty(len(keys), np.uint64)
    for place, key in enumerate(keys):
        repeat = before.get(key, 0)
        before[key] = repeat + 1
        digest = start.copy()
        digest.update(f"{key}\n{repeat}".encode("utf-8", "surrogateescape"))
        numbers[place] = int.from_bytes(digest.digest(), "little")
    return (numbers >> np.uint64(11)) * 2.0**-53
