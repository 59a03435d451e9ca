"""The table and the plot of ``text_tower.py``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.parts.common.harness import Row
from benchmarks.parts.common.plots import new_figure, save_figure, shared_legend
from benchmarks.parts.common.rows import by_case, device_name, faster
from benchmarks.parts.common.text import align, mebibytes, times


def table(rows: Sequence[Row]) -> str:
    """One case's rows as text; ``A faster`` is how many times as fast our first form is."""
    base = next((row["name"] for row in rows if row["contender"].startswith("clipfast")), None)
    lines = [
        ["", "captions/s", "ms", "p20", "p80", "A faster", "MiB", "features", "gradients"],
    ]
    for row in rows:
        lines.append(
            [
                f"A: {row['name']}" if row["name"] == base else row["name"],
                f"{row['items_per_s']:,.1f}",
                *(f"{row[key]:,.1f}" for key in ("median_ms", "p20_ms", "p80_ms")),
                times(row.get(f"ratio_to_{base}")),
                mebibytes(row["peak_extra_bytes"]),
                f"{row['error_features']:.0e}",
                f"{row['error_gradients']:.0e}",
            ]
        )
    return align(lines)


def plot(rows: Sequence[Row], path: Path) -> Path:
    """Draw one picture per machine, width and precision: bars of captions per second by source."""
    settings = by_case(rows, _setting)
    names = list(dict.fromkeys(row["name"] for row in rows))
    columns = min(2, len(settings))
    lines = -(-len(settings) // columns)
    figure = new_figure(1 + 5.2 * columns, 0.9 + 2.7 * lines)
    grid = figure.subplots(lines, columns, squeeze=False).flatten()
    for axes, (setting, chosen) in zip(grid, settings.items(), strict=False):
        sources = list(dict.fromkeys((row["captions"], row["mean_length"]) for row in chosen))
        _draw(axes, chosen, names, sources)
        axes.set_title(setting, fontsize=9)
    for axes in grid[len(settings) :]:
        axes.set_visible(False)
    shared_legend(figure)
    figure.suptitle("Text tower, forward and backward: captions per second", fontsize=11)
    return save_figure(figure, path)


def _setting(row: Row) -> str:
    return f"{device_name(row)}, width {row['width']}, batch {row['batch']}, {row['precision']}"


def _draw(axes: Any, rows: Sequence[Row], names: list[str], sources: list) -> None:
    bar = 0.8 / len(names)
    for row in rows:
        group = sources.index((row["captions"], row["mean_length"]))
        place = names.index(row["name"])
        x = group + (place - (len(names) - 1) / 2) * bar
        own = row["items_per_s"]
        axes.bar(x, own, 0.95 * bar, color=f"C{place}", label=row["name"])
        base = next(
            (r for r in rows if r["contender"] == "openclip" and r["captions"] == row["captions"]),
            row,
        )
        told = f"{own:,.3g}" if base is row else f"{own:,.3g}\n{faster(row, base):.2f}x"
        axes.text(x, own, told, ha="center", va="bottom", fontsize=7)
    axes.set_xticks(
        range(len(sources)),
        [f"{source} captions, {mean:.3g} tokens" for source, mean in sources],
        fontsize=8,
    )
    axes.tick_params(axis="y", labelsize=8)
    axes.margins(y=0.2)
