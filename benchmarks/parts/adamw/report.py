"""The table and the plot of ``adamw.py``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.parts.common.harness import Row
from benchmarks.parts.common.plots import OURS, THEIRS, save_figure, stacked_cases
from benchmarks.parts.common.rows import device_name
from benchmarks.parts.common.text import align, digits, mebibytes


def table(rows: Sequence[Row]) -> str:
    """One list's rows as text.

    ``B/param`` is what a step moves, counted from the types; ``of copy`` and ``in place`` its rate
    by those of large copies and of products in place in the same run; ``faster`` how many times as
    fast as torch's fused AdamW in float32 it is; ``us/tensor`` the time by the number of tensors.
    """
    first = rows[0]
    head = (
        f"\n{first['list']}: {first['elements']:,} parameters in {first['tensors']} tensors, "
        f"{first['device']}, {first['threads']} threads; a copy moves "
        f"{first['copy_gb_per_s']:.1f} GB/s, a product in place {first['in_place_gb_per_s']:.1f}\n"
    )
    lines = [
        [
            *(
                "",
                "ms",
                "p20",
                "p80",
                "us/tensor",
                "B/param",
                "GB/s",
                "of copy",
                "in place",
                "faster",
            ),
            *("state B/param", "peak MiB", "error"),
        ]
    ]
    for row in rows:
        faster = row["times_torch_fused"]
        lines.append(
            [
                row["name"] + (f" {row['version']}" if row["version"] else ""),
                *(digits(row[key]) for key in ("median_ms", "p20_ms", "p80_ms")),
                digits(row["us_per_tensor"]),
                f"{row['bytes_moved'] / row['elements']:.2f}",
                f"{row['gb_per_s']:.1f}",
                f"{row['of_copy']:.0%}",
                f"{row['of_in_place']:.0%}",
                "" if faster is None else f"{faster:.2f}x",
                f"{row['state_bytes_per_parameter']:.3f}",
                mebibytes(row["peak_extra_bytes"]),
                f"{row['error']:.0e}" if "error" in row else f"{row['error_ulp']:.2f} ulp",
            ]
        )
    return head + align(lines)


def plot(rows: Sequence[Row], path: Path) -> Path:
    """Draw one picture per machine and list: bars of a step's time, a tick where its floor is.

    Args:
        rows: Of any number of lists and machines.
        path: PNG to write.

    Returns:
        The file written.
    """
    figure, pictures = stacked_cases(rows, _case, _draw, width=10, bar=0.3, around=0.8, margin=0.7)
    pictures[-1].set_xlabel(
        "milliseconds per step; black: as many bytes copied or changed in place, in the same run",
        fontsize=9,
    )
    figure.suptitle("AdamW: one step", fontsize=11)
    return save_figure(figure, path)


def case_of(row: Row) -> tuple:
    """What rows of one case have in common, and no others."""
    return row["list"], row["elements"]


def _case(row: Row) -> str:
    return f"{device_name(row)}: {row['list']}, {row['elements'] / 1e6:,.0f}M parameters"


def _draw(axes: Any, rows: Sequence[Row]) -> None:
    for position, row in enumerate(rows):
        own, is_ours = row["median_ms"], row["name"].startswith("clipfast")
        error = [[own - row["p20_ms"]], [row["p80_ms"] - own]]
        color = OURS if is_ours else THEIRS
        axes.barh(position, own, xerr=error, color=color, ecolor="#444444", capsize=2)
        axes.plot([row["floor_ms"]] * 2, [position - 0.4, position + 0.4], color="black")
        times = row["times_torch_fused"]
        told = f"  {digits(own)} ms, {row['of_copy']:.0%} of copy"
        told += "" if times is None else f", {times:.2f}x torch"
        axes.text(max(row["p80_ms"], row["floor_ms"]), position, told, va="center", fontsize=7)
    axes.margins(x=0.4)
