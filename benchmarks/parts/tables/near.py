"""The tables of ``docs/measured/near.md``."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.parts.tables.runs import Run, by_machine, markdown, number, read_runs

_RATES = ("1e-06", "1e-05", "0.0001", "0.001")
_TOLD = "1e-05"


def near() -> str:
    """Mean recall by rate of false positives, and pictures per second."""
    return by_machine(read_runs("near_duplicates"), _near)


def _near(runs: Sequence[Run]) -> str:
    head = ["pictures", "detector", *(f"at {float(rate):g}" for rate in _RATES)]
    head += ["pairs", "threshold at 1e-5", "pictures/s, one thread"]
    lines = [
        [
            f"{row['pictures']:,} {row['case']}",
            row["name"],
            *(f"{row['recall'][rate]['mean']:.3f}" for rate in _RATES),
            f"{row['negatives']:,}",
            f"{row['recall'][_TOLD]['threshold']:.3f}",
            number(row, "items_per_s"),
        ]
        for run in runs
        for row in run.rows
    ]
    return markdown(head, sorted(lines))


def near_kinds() -> str:
    """Recall at 1e-5, by the kind of copy."""
    return by_machine(read_runs("near_duplicates"), _near_kinds)


def _near_kinds(runs: Sequence[Run]) -> str:
    rows = [row for run in runs for row in run.rows]
    kinds = [kind for kind in rows[0]["recall"][_TOLD] if kind not in ("threshold", "mean")]
    lines = [
        [
            f"{row['pictures']:,} {row['case']}",
            row["name"],
            *(f"{row['recall'][_TOLD][kind]:.3f}" for kind in kinds),
        ]
        for row in rows
    ]
    return markdown(["pictures", "detector", *kinds], sorted(lines))
