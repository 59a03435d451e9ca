"""The table, the plot and the judgement of ``batch_memory.py``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from benchmarks.parts.common.harness import Row
from benchmarks.parts.common.plots import OURS, THEIRS, new_figure, save_figure
from benchmarks.parts.common.rows import by_case, device_name
from benchmarks.parts.common.text import align, digits, mebibytes
from benchmarks.parts.memory.cases import FORMS

# Beyond what is counted: tokens, captions, and gaps between an allocator's blocks, which were 1.16
# and 1.34 times the count in two runs to 32,768 pairs.
SLACK = 1.5
_COLORS = {"crops": OURS, "files": "#2a9d62", "whole": THEIRS}


def case_of(row: Row) -> tuple[str, int, int]:
    """What rows that may be compared have in common."""
    return row["model"], row["batch"], row["micro_batch"]


def growth(rows: Sequence[Row]) -> tuple[int, int] | None:
    """Bytes that were measured and counted between the second batch and the last.

    The first batch is left out: the step is not yet the largest thing in its process.

    Args:
        rows: Of one form.

    Returns:
        Measured and counted; None where there are less than two batches to compare.
    """
    rows = sorted(rows, key=lambda row: row["batch"])[1:]
    if len(rows) < 2:
        return None
    small, large = rows[0], rows[-1]
    counted = sum(large["counted"].values()) - sum(small["counted"].values())
    return large["resident_bytes"] - small["resident_bytes"], counted


def complaints(rows: Sequence[Row]) -> list[str]:
    """Where memory grew by more than it has to; forms that decode by micro-batch alone."""
    told = []
    for form, chosen in by_case(rows, lambda row: row["form"]).items():
        found = growth(chosen) if form != "whole" else None
        if found is not None and found[0] > SLACK * found[1]:
            told.append(
                f"{FORMS[form]}: {mebibytes(found[0])} MiB more from {_sizes(chosen)}, "
                f"{mebibytes(found[1])} MiB counted"
            )
    return told


def table(rows: Sequence[Row]) -> str:
    """The rows as text, and each form's growth below."""
    lines = [["", "pairs", "MiB", "counted", "features", "workspace", "images", "s", "CPU s"]]
    for row in rows:
        counted = row["counted"]
        lines.append(
            [
                row["name"],
                f"{row['batch']:,}",
                mebibytes(row["resident_bytes"]),
                mebibytes(sum(counted.values())),
                *(mebibytes(counted[part]) for part in ("features", "workspace", "kept")),
                *(digits(row[key][-1]) for key in ("seconds", "cpu_seconds")),
            ]
        )
    told = [align(lines)]
    for form, chosen in by_case(rows, lambda row: row["form"]).items():
        if found := growth(chosen):
            measured, counted = map(mebibytes, found)
            told.append(f"{FORMS[form]}, {_sizes(chosen)}: +{measured} MiB, {counted} counted")
    return "\n".join(told)


def plot(rows: Sequence[Row], path: Path) -> Path:
    """Draw memory over the batch: measured as points, what has to grow as dashes."""
    figure = new_figure(8, 4.2)
    axes = figure.add_subplot()
    for form, chosen in by_case(rows, lambda row: row["form"]).items():
        chosen = sorted(chosen, key=lambda row: row["batch"])
        batches = [row["batch"] for row in chosen]
        resident = [row["resident_bytes"] / 2**30 for row in chosen]
        color = _COLORS[form]
        axes.plot(batches, resident, marker="o", color=color, label=FORMS[form])
        if form != "whole" and len(chosen) > 1:
            counts = [sum(row["counted"].values()) / 2**30 for row in chosen]
            line = [resident[1] + count - counts[1] for count in counts[1:]]
            axes.plot(batches[1:], line, linestyle="--", color=color, label="its count")
    axes.set_xscale("log", base=2)
    axes.set_xticks([row["batch"] for row in rows], [f"{row['batch']:,}" for row in rows])
    axes.set_ylim(bottom=0)
    axes.set_xlabel("pairs in a batch")
    axes.set_ylabel("GiB resident at the peak")
    axes.set_title(
        f"A step of {rows[0]['model']} in micro-batches of {rows[0]['micro_batch']}, "
        f"{device_name(rows[0])}",
        fontsize=9,
    )
    axes.legend(fontsize=8)
    return save_figure(figure, path)


def _sizes(rows: Sequence[Row]) -> str:
    batches = sorted(row["batch"] for row in rows)
    return f"{batches[min(1, len(batches) - 1)]:,} to {batches[-1]:,} pairs"
