"""Curves of few images per class (Radford et al. 2021, figures 6 and 7)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import log2
from statistics import mean, stdev

from clipfast.eval.report.charts.axes import Axes, percent_ticks
from clipfast.eval.report.context import Context
from clipfast.eval.report.markup import Markup, join, tag
from clipfast.eval.report.reading import Result, finite
from clipfast.eval.report.scores import FEW_SHOT, title_of
from clipfast.eval.report.tables import Cell, key, percent, table

TITLE = "Few images per class"
_CURVES = {"probe": "probe", "zero-shot as prior": "probe with zero-shot as its prior"}
_ALMOST = 1e-9


@dataclass(frozen=True)
class _Curve:
    """Scores of one kind of probe.

    Attributes:
        shots: images per class.
        scores: for each, of each seed.
        matches: images per class at which it is as good as zero-shot; None: it is not.
    """

    shots: Sequence[int]
    scores: Sequence[Sequence[float]]
    matches: float | None

    @property
    def means(self) -> list[float]:
        """Over the seeds."""
        return [mean(row) for row in self.scores]


def section(context: Context) -> Markup | None:
    """A drawing and a table per result.

    Args:
        context: of the page.
    """
    parts = []
    for result in context.of(FEW_SHOT):
        made = context.attempt("few-shot curves", result, _drawn)
        if made is not None:
            title = tag("h3", f"{result.dataset}, {context.label(result)}")
            parts.append(join(title, made))
    return join(*parts) if parts else None


def _drawn(result: Result) -> Markup | None:
    curves = {
        words: _curve(result.content[key])
        for key, words in _CURVES.items()
        if key in result.content
    }
    if not curves:
        return None
    metric = str(result.content["metric"])
    zero_shot = finite(result.metrics.get(f"zeroshot_{metric}"))
    return join(
        tag("div", _axes(result.dataset, title_of(metric), curves, zero_shot).draw()),
        _key(curves, zero_shot),
        _table(result.dataset, title_of(metric), curves),
    )


def _curve(content: Mapping[str, object]) -> _Curve:
    shots, scores = content["shots"], content["scores"]
    if not isinstance(shots, list) or not isinstance(scores, list) or len(shots) != len(scores):
        raise ValueError("shots and scores are not as many")
    if not all(isinstance(count, int) and count > 0 for count in shots):
        raise ValueError("shots are no numbers of images")
    numbers = [[float(score) for score in row] for row in scores]
    return _Curve(shots, numbers, finite(content.get("shots_to_match_zero_shot")))


def _axes(dataset: str, metric: str, curves: Mapping[str, _Curve], zero_shot: float | None) -> Axes:
    shots = sorted({count for curve in curves.values() for count in curve.shots})
    values = [score for curve in curves.values() for row in curve.scores for score in row]
    values += [] if zero_shot is None else [zero_shot]
    axes = Axes(
        f"{metric} on {dataset} against images per class",
        "images per class",
        metric,
        [(count, str(count)) for count in (shots if len(shots) > 1 else [shots[0], 2 * shots[0]])],
        percent_ticks(min(values), max(values)),
        x_scale=log2,
    )
    if zero_shot is not None:
        axes.line([(shots[0], zero_shot), (axes.x_ticks[-1][0], zero_shot)], "s2 dashed")
    for place, (words, curve) in enumerate(curves.items()):
        kind = f"s{place}"
        means = curve.means
        if len(means) > 1:
            axes.line(list(zip(curve.shots, means, strict=True)), kind)
        for count, score, row in zip(curve.shots, means, curve.scores, strict=True):
            spread = _deviation(row)
            axes.spread(count, score - spread, score + spread, kind)
            axes.mark(
                count,
                score,
                kind,
                "circle" if place == 0 else "square",
                f"{words}, {count} per class: {score:.1%}",
            )
        if zero_shot is not None and _crosses_inside(curve):
            assert curve.matches is not None
            axes.line(
                [(curve.matches, axes.y_ticks[0][0]), (curve.matches, zero_shot)], f"{kind} dotted"
            )
            axes.words(curve.matches, zero_shot, f"{curve.matches:.1f}", "middle")
    return axes


def _crosses_inside(curve: _Curve) -> bool:
    return curve.matches is not None and curve.shots[0] + _ALMOST < curve.matches <= curve.shots[-1]


def _key(curves: Mapping[str, _Curve], zero_shot: float | None) -> Markup:
    words = list(curves)
    if zero_shot is not None:
        words.append(f"zero-shot, {zero_shot:.1%}")
    # Zero-shot has the third colour whether or not there are two curves.
    colours = [*range(len(curves)), 2]
    marks = [key(text, colour) for colour, text in zip(colours, words, strict=False)]
    return tag("p", *marks, class_="keys")


def _table(dataset: str, metric: str, curves: Mapping[str, _Curve]) -> Markup:
    shots = sorted({count for curve in curves.values() for count in curve.shots})
    rows: list[list[Cell | str]] = []
    for words, curve in curves.items():
        by_shots = dict(zip(curve.shots, curve.scores, strict=True))
        cells = [_cell(by_shots.get(count)) for count in shots]
        rows.append([words, *cells, Cell(_told(curve), curve.matches or float("inf"))])
    head = ("probe", *(f"{count} per class" for count in shots), "as good as zero-shot with")
    caption = f"{metric} on {dataset}: mean and standard deviation over the seeds"
    return table(caption, head, rows, sortable=False)


def _cell(scores: Sequence[float] | None) -> Cell:
    if scores is None:
        return percent(None)
    spread = tag("small", f"\N{PLUS-MINUS SIGN}{_deviation(scores):.1%}")
    return Cell(join(f"{mean(scores):.1%} ", spread), mean(scores), is_number=True)


def _deviation(scores: Sequence[float]) -> float:
    """Over the seeds; 0 of one."""
    return stdev(scores) if len(scores) > 1 else 0.0


def _told(curve: _Curve) -> str:
    if curve.matches is None:
        return f"more than {curve.shots[-1]} per class"
    if curve.matches <= curve.shots[0]:
        return f"{curve.shots[0]} per class or fewer"
    return f"{curve.matches:.1f} per class"
