"""The tables and the plot of ``step_throughput.py``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.parts.common.harness import Row
from benchmarks.parts.common.plots import save_figure, stacked_cases
from benchmarks.parts.common.rows import device_name, faster
from benchmarks.parts.common.text import align, digits, mebibytes, times

PART_NAMES = {
    "image_forward": "image fwd",
    "image_backward": "image bwd",
    "text_forward": "text fwd",
    "text_backward": "text bwd",
    "loss": "loss",
    "optimizer": "optimizer",
}
PART_COLORS = ("#1f5fa8", "#7fb0e0", "#c05a1c", "#f0a873", "#3b8a3e", "#8a8a8a")
ERRORS = ("error_loss", "error_image_grad", "error_text_grad", "error_scale_grad")


def table(rows: Sequence[Row]) -> str:
    """One case's rows as two tables: the whole step, then its parts in milliseconds.

    ``A faster`` is how many times as fast as the row our first form is, ``B faster`` our second.
    """
    ours = [row["name"] for row in rows if row["contender"].startswith("clipfast")]
    letters = dict(zip(ours, "ABCDEFGH", strict=False))
    head = [
        "",
        "images/s",
        "ms",
        "p20",
        "p80",
        *(f"{letter} faster" for letter in letters.values()),
    ]
    head += [
        "MFU %",
        "done %",
        "TFLOP",
        "state MiB",
        "+ peak MiB",
        "loss",
        "image",
        "text",
        "scale",
    ]
    whole, parts = [head], [["", *PART_NAMES.values(), "sum"]]
    for row in rows:
        name = row["name"]
        name = f"{letters[name]}: {name}" if name in letters else name
        whole.append(
            [
                name,
                *(digits(row[key]) for key in ("items_per_s", "median_ms", "p20_ms", "p80_ms")),
                *(times(row.get(f"ratio_to_{base}")) for base in ours),
                f"{100 * row['mfu']:.1f}",
                "" if row["done_flop"] is None else f"{100 * _done(row):.1f}",
                digits(row["done_flop"], 1e12),
                mebibytes(row["state_bytes"]),
                mebibytes(row["peak_extra_bytes"]),
                *(f"{row[key]:.0e}" for key in ERRORS),
            ]
        )
        if row["parts_ms"]:
            laps = [row["parts_ms"][part] for part in PART_NAMES]
            parts.append([name, *map(digits, laps), digits(sum(laps))])
    return f"{align(whole)}\n\n{align(parts)}"


def _done(row: Row) -> float:
    """What is really computed, by time, by the rate of matrix products."""
    return row["done_flop"] / (row["median_ms"] / 1e3) / row["gemm_flop_per_s"]


def plot(rows: Sequence[Row], path: Path) -> Path:
    """Draw one picture per case: one bar per contender, its parts stacked, as long as its step.

    The parts are measured apart from the step; they are drawn in proportion, scaled to it. A step
    that is one compiled function has one grey bar.

    Args:
        rows: Rows of several cases.
        path: PNG to write.

    Returns:
        The file written.
    """
    # matplotlib is imported where something is drawn.
    from matplotlib.patches import Patch

    figure, _ = stacked_cases(rows, _title, _draw, width=10.5, bar=0.36, around=0.7, margin=1.1)
    handles = [
        Patch(color=color, label=name)
        for name, color in zip(PART_NAMES.values(), PART_COLORS, strict=True)
    ]
    handles.append(Patch(color="lightgrey", label="whole step, compiled"))
    figure.legend(handles=handles, loc="outside lower center", ncols=7, fontsize=8)
    figure.suptitle("One training step: both towers, loss, backward, optimizer", fontsize=11)
    return save_figure(figure, path)


def _draw(axes: Any, rows: Sequence[Row]) -> None:
    base = next((row for row in rows if row["contender"] == "openclip"), rows[0])
    for position, row in enumerate(rows):
        if row["parts_ms"]:
            scale = row["median_ms"] / sum(row["parts_ms"].values())
            left = 0.0
            for part, color in zip(PART_NAMES, PART_COLORS, strict=True):
                width = row["parts_ms"][part] * scale
                axes.barh(position, width, left=left, color=color)
                left += width
        else:
            axes.barh(position, row["median_ms"], color="lightgrey")
        told = f"  {row['items_per_s']:,.3g} images/s"
        if row is not base:
            told += f", {faster(row, base):.2f}x {base['name']}"
        axes.text(row["median_ms"], position, told, va="center", fontsize=8)
    axes.margins(x=0.4)
    axes.set_xlabel("milliseconds per step", fontsize=8)


def _title(row: Row) -> str:
    captions = f"{row['captions']} captions of {row['mean_length']:.3g} tokens"
    return (
        f"{row['model']}, batch {row['batch']:,}, {row['precision']}, {captions}; "
        f"{device_name(row)}"
    )


def case_of(row: Row) -> tuple:
    """What rows of one case have in common, and no others."""
    return tuple(row.get(key) for key in ("model", "width", "batch", "precision", "captions"))
