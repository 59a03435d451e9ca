"""A picture of how a run went."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any


def curves_figure(rows: Sequence[dict[str, Any]], path: str | Path) -> None:
    """Losses, retrieval or else top-1, temperature, learning rate and throughput by step.

    Args:
        rows: of ``metrics.jsonl``.
        path: of the PNG.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 7), dpi=110, layout="constrained")
    axes = figure.subplots(2, 3).flat
    panels = {
        "loss": "contrastive loss",
        "logit_scale": "logit scale",
        "lr": "learning rate",
        "images_per_second": "images per second",
        "grad_norm": "gradient norm",
    }
    training = [row for row in rows if "loss" in row]
    for (key, title), axis in zip(panels.items(), axes, strict=False):
        points = [(row["step"], row[key]) for row in training if key in row]
        axis.set(title=title, xlabel="step")
        axis.grid(alpha=0.3)
        if points:
            axis.plot(*zip(*points, strict=True), linewidth=1.2)
            if key == "loss":
                _plot_validation(axis, rows)
        else:
            axis.text(0.5, 0.5, "not recorded", transform=axis.transAxes, ha="center")
    names = {name for row in rows for name in row if name.startswith("eval/")}
    has_retrieval = any(name.endswith("R@1") for name in names)
    if not has_retrieval and any(name.endswith(("/acc1", "/lp_acc1")) for name in names):
        _plot_accuracy(axes[5], rows)
    else:
        _plot_retrieval(axes[5], rows)
    figure.savefig(path)


def _plot_validation(axis: Any, rows: Sequence[dict[str, Any]]) -> None:
    name = "validation/loss"
    points = [(row["step"], row[name]) for row in rows if name in row]
    if points:
        axis.plot(*zip(*points, strict=True), marker="o", markersize=4, label="held-out pairs")
        axis.legend(fontsize=8)


def _plot_accuracy(axis: Any, rows: Sequence[dict[str, Any]]) -> None:
    """Of tasks on data sets, where there is no retrieval."""
    ends = ("/acc1", "/lp_acc1")
    keys = sorted({k for row in rows for k in row if k.startswith("eval/") and k.endswith(ends)})
    for key in keys:
        points = [(row["step"], row[key]) for row in rows if key in row]
        label = "/".join(key.split("/")[1:-1])
        axis.plot(*zip(*points, strict=True), marker="o", markersize=4, label=label)
    axis.set(title="top-1", xlabel="step", ylim=(0, 1.02))
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)


def _plot_retrieval(axis: Any, rows: Sequence[dict[str, Any]]) -> None:
    keys = sorted(
        {k for row in rows for k in row if k.startswith("eval/") and k.endswith(("R@1", "R@5"))}
    )
    for key in keys:
        points = [(row["step"], row[key]) for row in rows if key in row]
        _, *source, direction, name = key.split("/")
        if direction == "image_to_text":
            label = f"{'/'.join(source)} {name}"
            axis.plot(*zip(*points, strict=True), marker="o", markersize=4, label=label)
    axis.set(title="image-to-text retrieval", xlabel="step", ylim=(0, 1.02))
    axis.grid(alpha=0.3)
    if keys:
        axis.legend(fontsize=8)
