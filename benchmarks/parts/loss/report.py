"""The table and the plot of ``loss_throughput.py``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.parts.common.harness import Row
from benchmarks.parts.common.plots import new_figure, save_figure, shared_legend
from benchmarks.parts.common.rows import by_case, device_name
from benchmarks.parts.common.text import align, digits, times

ERRORS = ("error_loss", "error_image_grad", "error_text_grad", "error_scale_grad")


def table(rows: Sequence[Row]) -> str:
    """One case's rows as text.

    Times are in milliseconds; ``x floor`` is a row's time by that of the matrix products that its
    form needs. ``A faster`` is how many times as fast as the row our first form is, ``B faster``
    our second. Memory is the peak above what is there before. Errors are relative, in the L2 norm,
    against float64.
    """
    ours = [row["name"] for row in rows if "floor" in row and "replay_of" not in row]
    letters = dict(zip(ours, "ABCDEFGHIJKLMNOPQRSTUVWXYZ", strict=False))
    head = ["", "median", "p20", "p80", "x floor", *(f"{letters[name]} faster" for name in ours)]
    head += ["MiB", "loss", "dU", "dV", "dlog s"]
    lines = [head]
    for row in rows:
        name = row["name"]
        if name in letters:
            name = f"{letters[name]}: {name}"
        if "flop_bgd" in row:
            name += f" ({row['floor_dtype']}, {row['floor_library']}, {row['tflops']:.3g} TFLOP/s)"
        extra = row["peak_extra_bytes"]
        lines.append(
            [
                name,
                *(digits(row[key]) for key in ("median_ms", "p20_ms", "p80_ms")),
                digits(row.get("ratio_to_floor")),
                *(times(row.get(f"ratio_to_{base}")) for base in ours),
                "" if extra is None else f"{extra / 2**20:,.1f}",
                *("" if row.get(key) is None else f"{row[key]:.0e}" for key in ERRORS),
            ]
        )
    return align(lines)


def plot(rows: Sequence[Row], path: Path) -> Path:
    """Draw time and memory by batch, one line per contender, the floors dashed.

    Args:
        rows: Rows of several cases; each device, width, dtype and number of ranks is a row of two
            pictures.
        path: PNG to write.

    Returns:
        The file written.
    """
    rows = [row for row in rows if "replay_of" not in row]
    settings = by_case(rows, _setting)
    names = list(dict.fromkeys(row["name"] for row in rows))
    figure = new_figure(11, 3.4 * len(settings) + 0.8)
    grid = figure.subplots(len(settings), 2, squeeze=False)
    for (time_axes, memory_axes), (setting, chosen) in zip(grid, settings.items(), strict=True):
        for name in names:
            line = sorted(
                (row for row in chosen if row["name"] == name), key=lambda row: row["batch"]
            )
            if line:
                style = _style(name, names)
                _draw(time_axes, line, style, "median_ms", 1.0)
                if line[0]["peak_extra_bytes"] is not None:
                    _draw(memory_axes, line, style, "peak_extra_bytes", 2.0**-20)
        time_axes.set_ylabel("milliseconds per loss")
        memory_axes.set_ylabel("peak extra MiB")
        batches = sorted({row["batch"] for row in chosen})
        for axes in (time_axes, memory_axes):
            axes.set_xscale("log", base=2)
            axes.set_yscale("log")
            axes.set_xticks(batches, [f"{batch:,}" for batch in batches])
            axes.minorticks_off()
            axes.grid(alpha=0.3)
            axes.set_xlabel("global batch")
            axes.set_title(setting, fontsize=9)
    shared_legend(figure)
    figure.suptitle("CLIP loss, forward and backward, from un-normalised features", fontsize=11)
    return save_figure(figure, path)


def case_of(row: Row) -> tuple:
    """What rows of one case have in common, and no others."""
    return tuple(row[key] for key in ("batch", "dim", "dtype", "ranks"))


def _setting(row: Row) -> str:
    ranks = f", {row['ranks']} ranks" if row["ranks"] > 1 else ""
    return f"{device_name(row)}, width {row['dim']}, {row['dtype']}{ranks}"


def _style(name: str, names: Sequence[str]) -> dict[str, Any]:
    if name.startswith("floor"):
        return {"label": name, "color": "black", "linestyle": "--" if "6" in name else ":"}
    contenders = [other for other in names if not other.startswith("floor")]
    is_ours = name.startswith("clipfast")
    return {
        "label": name,
        "color": f"C{contenders.index(name) % 10}",
        "marker": "o",
        "linewidth": 2.2 if is_ours else 1.2,
    }


def _draw(axes: Any, line: Sequence[Row], style: dict[str, Any], key: str, unit: float) -> None:
    # A logarithmic axis has no place for the zero of a size too small to be seen.
    points = [(row["batch"], row[key] * unit) for row in line if row[key]]
    if points:
        axes.plot(*zip(*points, strict=True), **style)
