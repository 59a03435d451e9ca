"""What prompts are worth (Radford et al. 2021, figure 4)."""

from __future__ import annotations

from math import ceil, floor

from clipfast.eval.report.charts.bars import dots
from clipfast.eval.report.context import Context
from clipfast.eval.report.markup import Markup, join, tag
from clipfast.eval.report.reading import Result, finite
from clipfast.eval.report.scores import ZERO_SHOT, score_of
from clipfast.eval.report.tables import Cell, key, percent, table

TITLE = "Prompts"
_WAYS = {"names": "names alone", "one prompt": "one prompt", "ensemble": "ensemble"}


def section(context: Context) -> Markup | None:
    """A row per result: class names alone, one prompt, the set's own prompts.

    Args:
        context: of the page.
    """
    rows: list[tuple[str, str, list[float | None], tuple[float, float] | None]] = []
    for result in context.of(ZERO_SHOT):
        if isinstance(result.content.get("prompts"), dict):
            values = context.tried("the comparison of prompts", result, _values)
            # One way to ask compares with nothing.
            if values is not None and sum(value is not None for value in values) > 1:
                rows.append((result.dataset, context.label(result), values, _interval(result)))
    if not rows:
        return None
    known = [value for _, _, values, _ in rows for value in values if value is not None]
    low, high = floor(min(known, default=0) * 10) / 10, ceil(max(known, default=1) * 10) / 10
    cells: list[list[Cell | str]] = [
        [name, label, *_cells(values, interval, low, high)]
        for name, label, values, interval in rows
    ]
    head = ("data set", "model", *_WAYS.values(), "ensemble gains", f"{low:.0%} to {high:.0%}")
    return join(
        tag("p", *(key(words, i) for i, words in enumerate(_WAYS.values())), class_="keys"),
        table("Class names alone, in one prompt, and in the set's own prompts", head, cells),
        tag("p", "The gain is that of the ensemble over class names alone, in points."),
    )


def _values(result: Result) -> list[float | None]:
    score = score_of(result)
    if score is None:
        raise ValueError("the result has no metric")
    prompts = result.content["prompts"]
    return [finite(prompts.get(way, {}).get(score.metric)) for way in _WAYS]


def _interval(result: Result) -> tuple[float, float] | None:
    score = score_of(result)
    return None if score is None else score.interval


def _cells(
    values: list[float | None], interval: tuple[float, float] | None, low: float, high: float
) -> list[Cell]:
    gain = None if values[0] is None or values[2] is None else values[2] - values[0]
    points = Cell("", is_number=True) if gain is None else Cell(f"{gain * 100:+.1f}", gain, True)
    mark = Cell(dots(values, interval, low, high), values[2])
    return [*map(percent, values), points, mark]
