"""Shifts of a data set against the set itself (Radford et al. 2021, figures 13 and 14)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import exp, log

from clipfast.eval.report.charts.axes import Axes
from clipfast.eval.report.context import Context
from clipfast.eval.report.markup import Markup, join, tag
from clipfast.eval.report.reading import Result, finite
from clipfast.eval.report.scores import ROBUSTNESS, interval_of
from clipfast.eval.report.tables import Cell, key, number, percent, span, table

TITLE = "Robustness"
_CLASSIFIERS = {
    "zeroshot": "zero-shot",
    "superclass_max": "zero-shot, largest of the subclasses",
    "own_names": "zero-shot, the shift's own names",
    "adapted": "adapted to the reference set",
}
_DASHED, _DOTTED = "\N{EM DASH} \N{EM DASH}", "\N{MIDDLE DOT}" * 4
_SHAPES = ("circle", "square", "diamond", "triangle")
_TICKS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99)


@dataclass(frozen=True)
class _Shift:
    """One classifier on one shift."""

    model: str
    place: int
    dataset: str
    classifier: str
    acc1: float
    interval: tuple[float, float] | None
    reference: float
    effective: float | None
    relative: float | None
    images: int | None


def section(context: Context) -> Markup | None:
    """One drawing and one table of all results.

    Args:
        context: of the page.
    """
    shifts: list[_Shift] = []
    others: dict[tuple[str, str], tuple[float, float]] = {}
    fits: dict[str, tuple[float, float]] = {}
    for result in context.of(ROBUSTNESS):
        read = partial(_shifts, model=context.label(result), place=context.place(result))
        shifts += context.tried("shifts", result, read) or []
        fits |= context.tried("fits", result, _fits) or {}
        others |= context.tried("baselines", result, _baselines) or {}
    if not shifts:
        return None
    return join(
        _key(shifts, bool(fits)), tag("div", _scatter(shifts, fits, others).draw()), _table(shifts)
    )


def _shifts(result: Result, model: str, place: int) -> list[_Shift]:
    return [
        _Shift(
            model,
            place,
            str(one["dataset"]),
            str(one["classifier"]),
            _number(one["acc1"]),
            interval_of(one.get("interval")),
            _number(one["reference_acc1"]),
            finite(one.get("effective_robustness")),
            finite(one.get("relative_robustness")),
            images if isinstance(images := one.get("images"), int) else None,
        )
        for one in result.content.get("shifts", [])
    ]


def _fits(result: Result) -> dict[str, tuple[float, float]]:
    fits: Mapping[str, Mapping[str, float]] = result.content.get("fit") or {}
    return {
        str(name): (_number(one["slope"]), _number(one["intercept"])) for name, one in fits.items()
    }


def _baselines(result: Result) -> dict[tuple[str, str], tuple[float, float]]:
    """Other models, by model and shift: top-1 on the reference set and on the shift."""
    return {
        (str(one["model"]), str(one["shift"])): (
            _number(one["reference_acc1"]),
            _number(one["acc1"]),
        )
        for one in result.content.get("baselines") or []
    }


def _number(value: object) -> float:
    number = finite(value)
    if number is None:
        raise ValueError(f"expected a number, got {value!r:.40}")
    return number


def _logit(share: float) -> float:
    share = min(max(share, 1e-3), 1 - 1e-3)
    return log(share / (1 - share))


def _scatter(
    shifts: Sequence[_Shift],
    fits: Mapping[str, tuple[float, float]],
    others: Mapping[tuple[str, str], tuple[float, float]],
) -> Axes:
    across = _around([*(one.reference for one in shifts), *(x for x, _ in others.values())])
    up = _around([*(one.acc1 for one in shifts), *(y for _, y in others.values())])
    axes = Axes(
        "top-1 on shifts against top-1 on the reference set, both on a logit scale",
        "top-1 on the reference set",
        "top-1 on the shift",
        across,
        up,
        x_scale=_logit,
        y_scale=_logit,
        height=400,
    )
    left, right = across[0][0], across[-1][0]
    ends = max(left, up[0][0]), min(right, up[-1][0])
    if ends[0] < ends[1]:
        axes.line([(ends[0], ends[0]), (ends[1], ends[1])], "dashed ideal")
    for slope, intercept in fits.values():
        points = [(x, _expit(slope * _logit(x) + intercept)) for x in _steps(left, right)]
        inside = [(x, y) for x, y in points if up[0][0] <= y <= up[-1][0]]
        if len(inside) > 1:
            axes.line(inside, "fit")
    for (model, dataset), (x, y) in others.items():
        axes.mark(x, y, "baseline", says=f"{model}, {dataset}: {y:.1%} (reference {x:.1%})")
    for shift in shifts:
        kind = f"s{shift.place % 8}"
        if shift.interval is not None:
            axes.spread(shift.reference, *shift.interval, kind)
        named = f"{shift.model}, {shift.dataset}, {told_classifier(shift.classifier)}"
        says = f"{named}: {shift.acc1:.1%} (reference {shift.reference:.1%})"
        axes.mark(shift.reference, shift.acc1, kind, _shape(shift.classifier), says)
    return axes


def _around(values: Sequence[float]) -> list[tuple[float, str]]:
    """Ticks from the one below the smallest value to the one above the largest."""
    low = max([tick for tick in _TICKS if tick <= min(values)], default=_TICKS[0])
    high = min([tick for tick in _TICKS if tick >= max(values)], default=_TICKS[-1])
    if low == high:
        place = _TICKS.index(low)
        low, high = _TICKS[max(place - 1, 0)], _TICKS[min(place + 1, len(_TICKS) - 1)]
    return [(tick, f"{tick:.0%}") for tick in _TICKS if low <= tick <= high]


def _steps(left: float, right: float) -> list[float]:
    a, b = _logit(left), _logit(right)
    return [_expit(a + (b - a) * i / 32) for i in range(33)]


def _expit(x: float) -> float:
    return 1 / (1 + exp(-max(min(x, 30.0), -30.0)))


def _shape(classifier: str) -> str:
    known = list(_CLASSIFIERS)
    return _SHAPES[known.index(classifier)] if classifier in known else "circle"


def told_classifier(classifier: str) -> str:
    """A classifier, for a person.

    Args:
        classifier: as results have it.
    """
    return _CLASSIFIERS.get(classifier, classifier)


def _key(shifts: Sequence[_Shift], has_fits: bool) -> Markup:
    models = dict.fromkeys((shift.model, shift.place % 8) for shift in shifts)
    colours = [key(model, place) for model, place in models]
    names = {
        "circle": "\N{BLACK CIRCLE}",
        "square": "\N{BLACK SQUARE}",
        "diamond": "\N{BLACK DIAMOND}",
        "triangle": "\N{BLACK UP-POINTING TRIANGLE}",
    }
    used = dict.fromkeys(shift.classifier for shift in shifts)
    shapes = [tag("span", f"{names[_shape(one)]} {told_classifier(one)}") for one in used]
    lines = [tag("span", f"{_DASHED} as good as on the reference set")]
    lines += [tag("span", f"{_DOTTED} where other models are")] if has_fits else []
    return tag("p", *colours, *shapes, *lines, class_="keys")


def _table(shifts: Sequence[_Shift]) -> Markup:
    rows: list[list[Cell | str]] = [
        [
            shift.dataset,
            shift.model,
            told_classifier(shift.classifier),
            percent(shift.acc1),
            span(shift.interval),
            percent(shift.reference),
            _points(shift.effective),
            _points(shift.relative),
            number(shift.images),
        ]
        for shift in shifts
    ]
    head = (
        "shift",
        "model",
        "classifier",
        "top-1",
        "99.5% interval",
        "reference",
        "effective robustness",
        "relative robustness",
        "images",
    )
    return join(
        table("Shifts, and what models are worth there", head, rows),
        tag(
            "p",
            "Effective robustness is top-1 above the line that other models are on. Relative "
            "robustness is what a classifier gains there over zero-shot. Both are in points.",
        ),
    )


def _points(value: float | None) -> Cell:
    if value is None:
        return percent(None)
    return Cell(f"{value * 100:+.1f}", value, is_number=True)
