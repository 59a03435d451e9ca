"""The frame of every plot, and bars of rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.parts.common.harness import Row
from benchmarks.parts.common.rows import by_case

if TYPE_CHECKING:
    from matplotlib.figure import Figure

OURS, THEIRS = "#1f5fa8", "#b5b5b5"


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of so many inches."""
    # The object interface: pyplot would pick a display and keep the figure alive.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save_figure(figure: Figure, path: Path, dpi: int = 130) -> Path:
    """Write a figure as a PNG, its folder made where it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=dpi)
    return path


def stacked_cases(
    rows: Sequence[Row],
    case_of: Callable[[Row], str],
    draw: Callable[[Any, Sequence[Row]], None],
    *,
    width: float,
    bar: float,
    around: float,
    margin: float,
) -> tuple[Figure, list[Any]]:
    """One picture per case above each other, as high as their rows need.

    Args:
        rows: Of any number of cases.
        case_of: The title that a row belongs under.
        draw: Draws one case's rows into axes.
        width: Of the figure, inches.
        bar: Height of one row, inches.
        around: Height of a picture's title and axis, inches.
        margin: Height of the figure's title and legend, inches.

    Returns:
        The figure and its axes from top to bottom.
    """
    cases = by_case(rows, case_of)
    heights = [around + bar * len(chosen) for chosen in cases.values()]
    figure = new_figure(width, sum(heights) + margin)
    grid = figure.subplots(len(cases), 1, squeeze=False, gridspec_kw={"height_ratios": heights})
    for axes, (case, chosen) in zip(grid[:, 0], cases.items(), strict=True):
        draw(axes, chosen)
        axes.set_yticks(range(len(chosen)), [row["name"] for row in chosen], fontsize=8)
        axes.invert_yaxis()
        axes.tick_params(axis="x", labelsize=8)
        axes.set_title(case, fontsize=9)
    return figure, list(grid[:, 0])


def shared_legend(figure: Figure, columns: int = 3) -> None:
    """One legend below for the labels of all pictures, each label once."""
    handles: dict[str, Any] = {}
    for axes in figure.axes:
        handles.update(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    figure.legend(
        handles.values(), handles.keys(), loc="outside lower center", ncols=columns, fontsize=8
    )


def plot_rows(
    rows: Sequence[Row],
    path: Path,
    *,
    title: str,
    group: str | None = None,
    value: str = "items_per_s",
    unit: str = "items per second",
) -> Path:
    """Draw one horizontal bar per row, with whiskers from the 20th to the 80th percentile.

    Args:
        rows: Rows of :func:`harness.measure`.
        path: PNG to write.
        title: What was measured, with the machine.
        group: Field that tells rows of one name apart, shown behind it.
        value: ``items_per_s`` or ``median_ms``.
        unit: Label of the axis.

    Returns:
        The file written.
    """
    figure = new_figure(8, 1.2 + 0.4 * len(rows))
    axes = figure.add_subplot()
    names = list(dict.fromkeys(row["name"] for row in rows))
    for position, row in enumerate(rows):
        height = row[value]
        # Throughput falls as time rises: the slow percentile is the low end of the whisker.
        scale = [row["median_ms"] / row[key] for key in ("p80_ms", "p20_ms")]
        low, high = scale if value == "items_per_s" else [1 / s for s in reversed(scale)]
        error = [[height - height * low], [height * high - height]]
        color = f"C{names.index(row['name'])}"
        axes.barh(position, height, xerr=error, color=color, ecolor="black", capsize=3)
        figures = f"  {height:,.0f}" if height >= 1000 else f"  {height:.3g}"
        axes.text(height * high, position, figures, va="center", fontsize=9)
    labels = [row["name"] + (f", {row[group]}" if group else "") for row in rows]
    axes.set_yticks(range(len(rows)), labels)
    axes.invert_yaxis()
    if max(row[value] for row in rows) > 100 * min(row[value] for row in rows):
        axes.set_xscale("log")  # as between a GPU and a CPU
    axes.margins(x=0.2)
    axes.set_xlabel(unit)
    axes.set_title(title, fontsize=10)
    return save_figure(figure, path, dpi=150)
