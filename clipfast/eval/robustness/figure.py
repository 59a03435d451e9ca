"""The scatter plot of robustness: accuracy on a shift against that on the reference."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from clipfast.eval.robustness.fit import Fit

_MARKS = {
    "zeroshot": ("#d7191c", "*", "zero-shot"),
    "superclass_max": ("#d7191c", "*", "zero-shot, best of members"),
    "own_names": ("#fdae61", "P", "zero-shot, own names"),
    "adapted": ("#2b83ba", "D", "adapted"),
}
_TICKS = np.array([0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99])
_MOST_COLUMNS = 4
# Shares of 0 and 1 have no logit; they are drawn at the first, and axes end at the second.
_EDGE, _END = 0.004, 0.0025


def robustness_figure(result: Mapping[str, Any], path: str | Path) -> None:
    """One panel per shift, and one for all corruptions, both axes on the scale of logits.

    Baselines are grey, with their line. Shares of 0 and 1 are drawn at the edge.

    Args:
        result: of the task "robustness", as its file has it.
        path: of the PNG.

    Raises:
        ImportError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(
            f"the plot of robustness needs matplotlib: pip install matplotlib ({error})"
        ) from error

    panels: dict[str, list[Mapping[str, Any]]] = {}
    for entry in result["shifts"]:
        title = "corruptions" if entry["corruption"] else entry["dataset"]
        panels.setdefault(title, []).append(entry)
    columns = min(_MOST_COLUMNS, max(1, len(panels)))
    rows = -(-max(1, len(panels)) // columns)
    size = (4.6 * columns, 4.4 * rows + 0.4)
    figure = Figure(figsize=size, dpi=110, layout="constrained")
    figure.suptitle(f"{result['model']}: {result['dataset']} and its shifts")
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axis in axes[len(panels) :]:
        axis.set_axis_off()
    for axis, (title, entries) in zip(axes, panels.items(), strict=False):
        _draw(axis, title, entries, result)
    figure.savefig(path)


def _draw(
    axis: Any, title: str, entries: list[Mapping[str, Any]], result: Mapping[str, Any]
) -> None:
    shifts = {entry["dataset"] for entry in entries}
    others = [one for one in result.get("baselines", ()) if one["shift"] in shifts]
    x = [entry["reference_acc1"] for entry in (*entries, *others)]
    y = [entry["acc1"] for entry in (*entries, *others)]
    low = _logit(np.clip(min(*x, *y) * 0.7, _END, 0.5))
    high = _logit(np.clip(1 - (1 - max(*x, *y)) * 0.7, 0.5, 1 - _END))
    ends = np.array([low, high])
    axis.plot(ends, ends, color="#999999", linewidth=0.9, linestyle="--", label="y = x")
    if others:
        points = [[_at(one[key]) for one in others] for key in ("reference_acc1", "acc1")]
        axis.scatter(*points, s=18, color="#777777", label="baselines")
    fit = result.get("fit", {}).get(title)
    if fit is not None:
        line = Fit(**fit)
        axis.plot(ends, line.intercept + line.slope * ends, color="#444444", linewidth=1.1)
    for name, (color, marker, label) in _MARKS.items():
        mine = [entry for entry in entries if entry["classifier"] == name]
        if mine:
            _points(axis, mine, color, marker, label)
    ticks = _at(_TICKS)
    is_in = (ticks >= low) & (ticks <= high)
    labels = [f"{100 * tick:g}" for tick in _TICKS[is_in]]
    axis.set(
        title=title,
        xlabel=f"top-1 on {result['dataset']}, same classes (%)",
        ylabel="top-1 on the shift (%)",
        xlim=(low, high),
        ylim=(low, high),
    )
    axis.set_xticks(ticks[is_in], labels)
    axis.set_yticks(ticks[is_in], labels)
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8, loc="upper left")


def _points(
    axis: Any, entries: list[Mapping[str, Any]], color: str, marker: str, label: str
) -> None:
    x = _at([entry["reference_acc1"] for entry in entries])
    y = _at([entry["acc1"] for entry in entries])
    bounds = _at([entry["interval"] for entry in entries]).T
    axis.errorbar(x, y, np.abs(bounds - y), fmt="none", ecolor=color, elinewidth=0.8, alpha=0.6)
    axis.scatter(x, y, s=45, color=color, marker=marker, label=label, zorder=3)
    for entry, across, up in zip(entries, x, y, strict=True):
        if entry["corruption"] and entry["severity"] is not None and len(entries) <= 20:
            axis.annotate(
                entry["corruption"],
                (across, up),
                (-7, -2),
                textcoords="offset points",
                ha="right",
                fontsize=6,
                color=color,
            )


def _at(share: Any) -> np.ndarray:
    return _logit(np.clip(np.asarray(share, np.float64), _EDGE, 1 - _EDGE))


def _logit(share: Any) -> Any:
    return np.log(share / (1 - share))
