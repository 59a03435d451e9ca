"""Pictures of what tasks found."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from clipfast.eval.probe.fewshot import Curve
from clipfast.eval.zeroshot.classification import Judged

# Bars that can be read; of more classes the worst are shown.
_BARS = 30
_TABLE = 30
_LEVEL = "99.5%"


def classes_figure(judged: Mapping[str, Judged], path: str | Path) -> None:
    """Recall of each class with its interval, and what classes are taken for; set beside set.

    Args:
        judged: by the set's name.
        path: of the PNG.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7 * len(judged), 9), dpi=100, layout="constrained")
    axes = figure.subplots(2, len(judged), squeeze=False)
    for (name, main), (bars, table) in zip(judged.items(), axes.T, strict=True):
        _draw_recalls(bars, name, main)
        _draw_confusion(table, main)
    figure.savefig(path)


def shots_figure(
    found: Mapping[str, tuple[str, float, Mapping[str, Curve]]], path: str | Path
) -> None:
    """Scores by images per class, with zero-shot as a line; set beside set.

    Args:
        found: by the set's name: metric, its value without a probe, curves by their names.
        path: of the PNG.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5 * len(found), 4), dpi=100, layout="constrained")
    axes = figure.subplots(1, len(found), squeeze=False)[0]
    for (name, (metric, zero_shot, curves)), axis in zip(found.items(), axes, strict=True):
        for label, curve in curves.items():
            axis.errorbar(curve.shots, curve.means, curve.deviations, marker="o", label=label)
        axis.axhline(zero_shot, color="black", linestyle="--", label="zero-shot")
        axis.set(title=name, xlabel="images per class", ylabel=metric)
        axis.set_xscale("log", base=2)
        shots = [count for curve in curves.values() for count in curve.shots]
        axis.set_xticks(sorted(set(shots)), [str(count) for count in sorted(set(shots))])
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    figure.savefig(path)


def _draw_recalls(axis: Any, name: str, main: Judged) -> None:
    there = [entry for entry in main.per_class if entry["images"]]
    shown = sorted(there, key=lambda entry: entry["recall"])[:_BARS]
    recalls = np.array([entry["recall"] for entry in shown])
    ends = np.array([entry["interval"] for entry in shown])
    errors = np.abs(ends.T - recalls)
    axis.barh(range(len(shown)), recalls, xerr=errors, color="#74add1", ecolor="#555555")
    axis.set_yticks(range(len(shown)), [entry["name"] for entry in shown], fontsize=8)
    axis.invert_yaxis()
    worst = f", the {_BARS} worst of {len(there)}" if len(there) > len(shown) else ""
    axis.set(
        title=f"{name}: top-1 {main.metrics['acc1']:.1%}\nclasses found{worst}, {_LEVEL} intervals",
        xlim=(0, 1),
    )


def _draw_confusion(axis: Any, main: Judged) -> None:
    names = [entry["name"] for entry in main.per_class]
    if main.confusion is None or len(names) > _TABLE:
        pairs = main.most_confused[:_BARS]
        axis.barh(range(len(pairs)), [pair["images"] for pair in pairs], color="#f46d43")
        labels = [f"{pair['class']} as {pair['taken_for']}" for pair in pairs]
        axis.set_yticks(range(len(pairs)), labels, fontsize=7)
        axis.invert_yaxis()
        axis.set(title="most confused, images")
        return
    table = np.array(main.confusion, float)
    shares = table / np.maximum(table.sum(1, keepdims=True), 1)
    axis.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axis.set_xticks(range(len(names)), names, rotation=90, fontsize=8)
    axis.set_yticks(range(len(names)), names, fontsize=8)
    axis.set(title="row: what it is; column: what it was taken for")
    if len(names) <= _BARS // 2:
        for row, column in np.ndindex(*shares.shape):
            if table[row, column]:
                axis.text(
                    column,
                    row,
                    f"{table[row, column]:.0f}",
                    ha="center",
                    va="center",
                    fontsize=7,
                    color="white" if shares[row, column] > 0.5 else "black",
                )
