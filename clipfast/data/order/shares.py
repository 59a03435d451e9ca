"""How many samples of each source an epoch of a mixture takes, and in which part of it.

The samples of a mixture's epoch are due one after another: of m samples of a source the j-th is
due at (2j + 1) / 2m of the epoch. The first P of all that are due, ties by the number of the
source, are what the first P positions take. So a source is spread evenly over the epoch, every sum
is exact, and any P is found without the ones before it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np


@dataclass(frozen=True)
class Share:
    """A source of a mixture.

    Attributes:
        name: of the source; its order depends on it.
        counts: ``[S]`` int64, number of samples of each of its shards.
        samples: m, what an epoch of the mixture takes of it.
        units: weights of its samples, see ``WeightedOrder``; None: there are none.
    """

    name: str
    counts: np.ndarray
    samples: int
    units: Sequence[np.ndarray | None] | None = None


def taken(stop: int, samples: Sequence[int]) -> list[int]:
    """How many samples of each source stand in front of a position.

    Args:
        stop: P, from 0 to N, the sum of `samples`.
        samples: m of each source, none below 1.

    Returns:
        One number per source; their sum is P.
    """
    total = sum(samples)
    # All that is due up to P / N, which is about P.
    due = [min(m, (2 * stop * m + total) // (2 * total)) for m in samples]
    while sum(due) > stop:
        last = [(Fraction(2 * c - 1, 2 * m), i) for i, (c, m) in enumerate(_pairs(due, samples))]
        due[max(each for each in last if each[0] > 0)[1]] -= 1
    while sum(due) < stop:
        following = [
            (Fraction(2 * c + 1, 2 * m), i)
            for i, (c, m) in enumerate(_pairs(due, samples))
            if c < m
        ]
        due[min(following)[1]] += 1
    return due


def _pairs(due: Sequence[int], samples: Sequence[int]) -> list[tuple[int, int]]:
    return list(zip(due, samples, strict=True))


def by_weights(sizes: Mapping[str, int], weights: Mapping[str, float], total: int) -> list[int]:
    """Samples of an epoch in the ratio of weights, by largest remainders.

    Args:
        sizes: number of samples of each source.
        weights: of each source; only their ratio counts.
        total: N, samples of an epoch.

    Returns:
        m of each source, in the order of `sizes`; their sum is N.

    Raises:
        ValueError: sources and weights are not the same names, or a source gets no sample.
    """
    _require_names(sizes, weights, "weights")
    exact = {name: Fraction(weights[name]) for name in sizes}
    whole = sum(exact.values())
    due = [total * exact[name] / whole for name in sizes]
    found = [int(each) for each in due]
    rest = sorted(range(len(due)), key=lambda i: (found[i] - due[i], i))
    for i in rest[: total - sum(found)]:
        found[i] += 1
    for name, m in zip(sizes, found, strict=True):
        if m < 1:
            raise ValueError(
                f"of {total:,} samples of an epoch source {name!r} with weight {weights[name]:g} "
                "gets none: raise its weight or the samples of an epoch"
            )
    return found


def by_repeats(sizes: Mapping[str, int], repeats: Mapping[str, float]) -> list[int]:
    """Samples of an epoch that reads each source so many times.

    Args:
        sizes: number of samples of each source.
        repeats: how often an epoch passes through a source; 1 where nothing is said. 0.5 takes half
            of it, the other half in the next epoch.

    Returns:
        m of each source, in the order of `sizes`, rounded to the nearest.

    Raises:
        ValueError: a name is no source, or a source gets no sample.
    """
    _require_names(sizes, {**dict.fromkeys(sizes, 1), **repeats}, "repeats")
    found = [round(Fraction(repeats.get(name, 1)) * size) for name, size in sizes.items()]
    for (name, size), m in zip(sizes.items(), found, strict=True):
        if m < 1:
            raise ValueError(
                f"source {name!r} of {size:,} samples, {repeats.get(name, 1):g} times, gives none "
                "to an epoch: raise the number"
            )
    return found


def _require_names(asked: Mapping[str, object], known: Mapping[str, object], what: str) -> None:
    if set(asked) == set(known):
        return
    lacking, unknown = sorted(set(asked) - set(known)), sorted(set(known) - set(asked))
    words = [f"no {what} of {', '.join(map(repr, lacking))}"] if lacking else []
    words += [f"{', '.join(map(repr, unknown))} is no source"] if unknown else []
    raise ValueError(f"{what}: {'; '.join(words)}")
