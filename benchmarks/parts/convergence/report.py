"""The trainings' table on the terminal, and their plot."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path

from benchmarks.parts.common.harness import Row
from benchmarks.parts.common.plots import new_figure, save_figure
from benchmarks.parts.common.rows import by_case
from benchmarks.parts.common.text import align, digits
from benchmarks.parts.convergence.compare import FIGURES, RECALLS, compare, groups_of
from benchmarks.parts.convergence.settings import GALLERIES, recipe

_COLORS = ("#1f5fa8", "#d07a1f", "#3f8f4f", "#8f3f8f")


def table(rows: Sequence[Row]) -> str:
    """One line per figure, then one per contender with what it took."""
    return "\n\n".join(align(lines) for lines in (_figures(rows), _times(rows)))


def _figures(rows: Sequence[Row]) -> list[list[str]]:
    lines = [["", "clipfast", "deviation", "other", "deviation", "difference", "95%", ""]]
    groups = groups_of(rows)
    if not groups:
        return [["fewer than two seeds of two contenders: nothing to compare"]]
    ours, *others = groups
    for name in others:
        lines.append([name] + [""] * 7)
        for figure in FIGURES:
            found = compare(groups[ours], groups[name], figure)
            verdict = "within seed variance" if found["is_same"] else "DIFFERS"
            keys = ("mean", "deviation", "other_mean", "other_deviation")
            told = [f"{found[key]:.4f}" for key in keys]
            told += [f"{found['difference']:+.4f}", f"{found['low']:+.4f} to {found['high']:+.4f}"]
            lines.append([f"  {figure}", *told, verdict])
    return lines


def _times(rows: Sequence[Row]) -> list[list[str]]:
    times = [["median of its seeds", "seeds", "steps", "s", "training", "CPU s", "training"]]
    for named, chosen in by_case(rows, _length).items():
        keys = ("seconds", "train_seconds", "cpu_seconds", "train_cpu_seconds")
        told = [digits(statistics.median(row[key] for row in chosen)) for key in keys]
        times.append([named, str(len(chosen)), str(chosen[0]["steps"]), *told])
    return times


def complaints(rows: Sequence[Row]) -> list[str]:
    """Figures that differ."""
    groups = groups_of(rows)
    ours, *others = groups or [""]
    return [
        f"{name}: {figure} differs"
        for name in others
        for figure in FIGURES
        if not compare(groups[ours], groups[name], figure)["is_same"]
    ]


def plot(rows: Sequence[Row], path: Path) -> Path:
    """Draw every seed's loss by step, and every seed's recalls.

    Args:
        rows: Of :func:`experiment.read`.
        path: PNG to write.

    Returns:
        The file written.
    """
    groups = groups_of(rows)
    figure = new_figure(11, 4.2)
    losses, *galleries = figure.subplots(1, 1 + len(GALLERIES))
    for position, (name, chosen) in enumerate(groups.items()):
        color = _COLORS[position % len(_COLORS)]
        for i, row in enumerate(chosen):
            label = None if i else f"{name}, {len(chosen)} seeds"
            steps = range(1, len(row["losses"]) + 1)
            losses.plot(steps, row["losses"], color=color, label=label, linewidth=0.8, alpha=0.7)
        for gallery, axes in zip(GALLERIES, galleries, strict=True):
            figures = [recall for recall in RECALLS if recall.startswith(gallery)]
            for row in chosen:
                places = [i + 0.2 * position - 0.1 for i in range(len(figures))]
                axes.scatter(places, [row[key] for key in figures], s=14, color=color, alpha=0.7)
    losses.set_xlabel(f"step, {recipe().batch_size} pairs each")
    losses.set_title("Loss of every seed", fontsize=10)
    losses.legend(fontsize=8)
    for gallery, axes in zip(GALLERIES, galleries, strict=True):
        told = ["text", "picture"]
        labels = [f"{side} R@{k}" for side in told for k in (1, 5, 10)]
        axes.set_xticks(range(len(labels)), labels, rotation=35, ha="right", fontsize=8)
        axes.set_ylim(0, None)
        axes.set_title(f"Recall on {gallery}, every seed", fontsize=10)
    for axes in (losses, *galleries):
        axes.grid(alpha=0.3)
    return save_figure(figure, path)


def _length(row: Row) -> str:
    threads = f"{row['threads']} thread{'s' if row['threads'] > 1 else ''}"
    return f"{row['name']}, {row['epochs']} epochs, {threads}, {row['machine']} machine"
