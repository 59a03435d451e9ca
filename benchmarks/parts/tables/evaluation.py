"""The tables of ``docs/measured/evaluation.md``."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.parts.common.harness import Row
from benchmarks.parts.tables.runs import (
    NOT_MEASURED,
    Run,
    by_machine,
    markdown,
    number,
    ratio,
    read_runs,
)


def zeroshot() -> str:
    """Texts and images per second beside CLIP_benchmark, and what both say."""
    return by_machine(read_runs("zeroshot"), _zeroshot)


def _zeroshot(runs: Sequence[Run]) -> str:
    head = ["case", "program", "per second", "clipfast is faster", "accuracy"]
    head += ["mean recall", "said otherwise"]
    lines = []
    for case in _cases(runs):
        for row in case.rows:
            lines.append(
                [
                    row["case"],
                    row["name"],
                    number(row, "items_per_s"),
                    _faster(row),
                    _share(row, "acc1"),
                    _share(row, "mean_per_class_recall"),
                    str(row.get("said_otherwise", "")),
                ]
            )
    return markdown(head, lines)


def probe() -> str:
    """Whole linear probes beside scikit-learn."""
    return by_machine(read_runs("probe"), _probe)


def _probe(runs: Sequence[Run]) -> str:
    head = ["features", "program", "s", "clock", "runs", "clipfast is faster", "accuracy", "lambda"]
    lines = []
    for case in _cases(runs):
        for row in case.rows:
            lines.append(
                [
                    row["case"],
                    row["name"],
                    number(row, "median_ms", 1e3),
                    row["clock"],
                    str(row["runs"]),
                    _faster(row),
                    _share(row, "accuracy"),
                    number(row, "lambda"),
                ]
            )
    return markdown(head, lines)


def _cases(runs: Sequence[Run]) -> list[Run]:
    found = [case for run in runs for case in run.cases("case")]
    return sorted(found, key=lambda case: str(case.rows[0]["case"]))


def _faster(row: Row) -> str:
    return "" if row["name"].startswith("clipfast") else ratio(row.get("ratio_to_clipfast"))


def _share(row: Row, key: str) -> str:
    """A share of images, as a percentage; nothing where the row is about texts."""
    if key not in row:
        return "" if "texts" in row["case"] else NOT_MEASURED
    return f"{row[key]:.2%}"
