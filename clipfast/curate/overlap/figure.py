"""The two plots of Radford et al. 2021, figure 17."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

from clipfast.curate.overlap.result import SetOverlap, tests_of
from clipfast.curate.overlap.statistics import significant

# Text, lines and marks on a light page, and on a dark one.
_LIGHT = ("#1c2024", "#d9dde2", "#0072b2", "#d55e00")
_DARK = ("#e4e7eb", "#333a42", "#56b4e9", "#f0904a")


def plots(results: Sequence[SetOverlap], *, dark: bool = False) -> list[bytes]:
    """Both plots, as PNGs with a transparent ground.

    Left: accuracy on Overlap less that on Clean, with its 99.5% interval, over contamination.
    Right: accuracy on All less that on Clean, over contamination; significant ones are marked.

    Args:
        results: sets whose effect is known.
        dark: for a dark page.

    Raises:
        ValueError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ValueError(
            "the plots of overlap are matplotlib's, which is not installed: pip install "
            "'clipfast[curate]'"
        ) from None
    text, grid, plain, marked = _DARK if dark else _LIGHT
    figures = [Figure(figsize=(5.5, 4.6), dpi=110, layout="constrained") for _ in range(2)]
    left, right = (figure.subplots() for figure in figures)
    tests = tests_of(results)
    for one in results:
        effect = one.effect
        if effect is None or effect.difference is None or effect.gain is None:
            continue
        kind = significant(effect.p_value, tests)
        colour = plain if kind == "no" else marked
        at = 100 * one.contamination
        low, high = effect.difference_interval or (effect.difference, effect.difference)
        left.plot([at, at], [100 * low, 100 * high], color=colour, linewidth=1.4)
        left.plot([at], [100 * effect.difference], "o", color=colour)
        shape = {"no": "o", "yes": "D", "Bonferroni": "*"}[kind]
        size = 12 if shape == "*" else 7
        right.plot([at], [100 * effect.gain], shape, color=colour, markersize=size)
        for axis, y in ((left, 100 * effect.difference), (right, 100 * effect.gain)):
            axis.annotate(
                one.images.name,
                (at, y),
                (6, 4),
                textcoords="offset points",
                fontsize=8,
                color=text,
            )
    left.set_ylabel("accuracy on Overlap less Clean (points)")
    right.set_ylabel("accuracy on All less Clean (points)")
    for axis in (left, right):
        _dress(axis, text, grid)
    return [_png(figure) for figure in figures]


def _png(figure: Any) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", transparent=True)
    return buffer.getvalue()


def _dress(axis: Any, text: str, grid: str) -> None:
    axis.set_xlabel("images that overlap (%)", color=text)
    axis.yaxis.label.set_color(text)
    axis.axhline(0, color=text, linewidth=0.9, linestyle="--")
    axis.margins(x=0.15, y=0.15)
    axis.tick_params(colors=text)
    axis.grid(color=grid, linewidth=0.8)
    for side in axis.spines.values():
        side.set_color(grid)
