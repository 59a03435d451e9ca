"""Whether two groups of seeds differ: Welch's interval for the difference of their means.

    d +- t(level, nu) sqrt(s1^2 / n1 + s2^2 / n2)

with Welch's nu. A seed of one program has nothing in common with the same seed of the other: seeds
are not paired.

The criterion, fixed beforehand: *the same within seed variance* where the intervals of all figures,
at a level that holds for all of them together (Bonferroni), contain 0. The 95% interval of a figure
alone says how large a difference so few seeds would leave unseen.

Source: Welch 1947, "The generalization of Student's problem".
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from benchmarks.parts.common.harness import Row
from benchmarks.parts.convergence.evaluate import DIRECTIONS
from benchmarks.parts.convergence.settings import GALLERIES

RECALLS = [f"{g}/{d}/R@{k}" for g in GALLERIES for d in DIRECTIONS for k in (1, 5, 10)]
FIGURES = ["final_loss", *RECALLS]
_LEVEL = 0.95
FEWEST = 2  # seeds


def compare(ours: Sequence[Row], theirs: Sequence[Row], figure: str) -> Row:
    """The means of two groups of trainings, and how far apart they are.

    Args:
        ours: Rows of one contender, one per seed.
        theirs: Of the other.
        figure: Of :data:`FIGURES`.

    Returns:
        ``mean`` and ``deviation`` of ours, ``other_mean`` and ``other_deviation``, ``difference``
        (ours less theirs), its 95% interval ``low`` to ``high``, and ``is_same``: the interval for
        all figures together contains 0.
    """
    from scipy.stats import ttest_ind

    groups = [[row[figure] for row in rows] for rows in (ours, theirs)]
    test = ttest_ind(*groups, equal_var=False)
    alone = test.confidence_interval(_LEVEL)
    joint = test.confidence_interval(1 - (1 - _LEVEL) / len(FIGURES))
    means = [statistics.fmean(group) for group in groups]
    deviations = [statistics.stdev(group) for group in groups]
    return {
        "mean": means[0],
        "deviation": deviations[0],
        "other_mean": means[1],
        "other_deviation": deviations[1],
        "difference": means[0] - means[1],
        "low": float(alone.low),
        "high": float(alone.high),
        "is_same": bool(joint.low <= 0 <= joint.high),
    }


def groups_of(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """The trainings to compare, by name: those of the longest length that two contenders have.

    Args:
        rows: Of :func:`experiment.read`.

    Returns:
        Ours first, each in the order of seeds; a contender with less than two seeds is left out.
        Rows of a quiet machine count where there is no other one of the seed.
    """
    by_epochs: dict[int, dict[str, dict[int, Row]]] = {}
    for row in sorted(rows, key=lambda row: row["machine"] == "quiet"):
        by_epochs.setdefault(row["epochs"], {}).setdefault(row["name"], {}).setdefault(
            row["seed"], row
        )
    for epochs in sorted(by_epochs, reverse=True):
        found = {
            name: [seeds[seed] for seed in sorted(seeds)]
            for name, seeds in sorted(by_epochs[epochs].items(), key=_order)
            if len(seeds) >= FEWEST
        }
        if len(found) > 1:
            return found
    return {}


def _order(item: tuple[str, object]) -> bool:
    return not item[0].startswith("clipfast")
