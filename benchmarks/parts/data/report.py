"""The table and the plot of ``data_throughput.py``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.parts.common.harness import Row
from benchmarks.parts.common.plots import OURS, THEIRS, save_figure, stacked_cases
from benchmarks.parts.common.rows import device_name
from benchmarks.parts.common.text import align, times


def case_of(row: Row) -> tuple[str, int, int, int]:
    """What rows that may be compared have in common."""
    return row["pictures"], row["image_size"], row["cores"], row["batch"]


def told(row: Row) -> str:
    """A case in words."""
    cores = f"{row['cores']} core" + "s" * (row["cores"] > 1)
    return f"{row['pictures']}, to {row['image_size']}, {cores}"


def table(rows: Sequence[Row]) -> str:
    """One case's rows as text; ``A faster`` is how many times as fast our first form is."""
    base = next((row["name"] for row in rows if row["contender"].startswith("clipfast")), None)
    lines = [["", "images/s", "per core", "us/image", "A faster", "per core", "ms/batch"]]
    for row in rows:
        lines.append(
            [
                f"A: {row['name']}" if row["name"] == base else row["name"],
                f"{row['items_per_s']:,.0f}",
                f"{row['items_per_core_s']:,.0f}",
                f"{row['cpu_us_per_image']:,.0f}",
                times(row.get(f"ratio_to_{base}")),
                times(row.get(f"cpu_ratio_to_{base}")),
                f"{row['median_ms']:,.1f}",
            ]
        )
    return align(lines)


def plot(rows: Sequence[Row], path: Path) -> Path:
    """Draw one picture per case: bars of images per second of one core."""

    def draw(axes: Any, chosen: Sequence[Row]) -> None:
        for place, row in enumerate(chosen):
            value = row["items_per_core_s"]
            color = OURS if row["contender"].startswith("clipfast") else THEIRS
            axes.barh(place, value, color=color)
            axes.text(value, place, f" {value:,.0f}", va="center", fontsize=8)
        axes.margins(x=0.15)

    figure, axes = stacked_cases(
        rows,
        lambda row: f"{device_name(row)}: {told(row)}",
        draw,
        width=8,
        bar=0.28,
        around=0.75,
        margin=0.4,
    )
    axes[-1].set_xlabel("images per second of processor time", fontsize=8)
    return save_figure(figure, path)
