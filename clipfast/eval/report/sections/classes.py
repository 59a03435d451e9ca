"""Each set by itself: its classes, what is confused, single images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from clipfast.eval.report.charts.bars import bar
from clipfast.eval.report.charts.heatmap import heatmap, legend
from clipfast.eval.report.context import Context
from clipfast.eval.report.markup import Markup, join, tag
from clipfast.eval.report.pictures import pictures
from clipfast.eval.report.reading import Result, finite
from clipfast.eval.report.scores import ZERO_SHOT, interval_of
from clipfast.eval.report.tables import Cell, number, percent, span, table

TITLE = "Classes, confusions, examples"
# Classes that are shown: half of them the best, half the worst.
_MOST_CLASSES = 40
_MOST_IN_HEATMAP = 30
_MOST_PAIRS = 15


def section(context: Context) -> Markup | None:
    """A part per result, that opens.

    Args:
        context: of the page.
    """
    parts: list[Markup] = []
    for result in context.of(ZERO_SHOT):
        inside = [
            context.attempt(what, result, render)
            for what, render in (
                ("classes", _classes),
                ("the confusion matrix", _heatmap),
                ("most confused classes", _pairs),
                ("examples", lambda one: pictures(one, context.pictures_per_result)),
            )
        ]
        if any(part is not None for part in inside):
            title = tag("summary", f"{result.dataset}, {context.label(result)}")
            tables = tag("div", *inside[:-1], class_="beside")
            parts.append(tag("details", title, tables, inside[-1], open=not parts))
    return join(*parts) if parts else None


def _classes(result: Result) -> Markup | None:
    entries = result.content.get("per_class")
    if not entries:
        return None
    key = next(k for k in ("recall", "average_precision") if k in entries[0])
    known = [entry for entry in entries if finite(entry[key]) is not None]
    known.sort(key=lambda entry: -entry[key])
    shown: Sequence[dict[str, Any]] = known
    caption = f"Classes of {result.dataset}"
    if len(known) > _MOST_CLASSES:
        half = _MOST_CLASSES // 2
        shown = [*known[:half], *known[-half:]]
        caption += f": the {half} best and the {half} worst of {len(known):,}"
    rows = []
    for entry in shown:
        value, interval = finite(entry[key]), interval_of(entry.get("interval"))
        rows.append(
            (
                str(entry["name"]),
                percent(value),
                Cell(bar(value, interval), value),
                span(interval),
                number(entry.get("images")),
            )
        )
    title = key.replace("_", " ")
    empty = len(entries) - len(known)
    more = tag("p", f"{empty} of the classes have no image.") if empty else None
    head = ("class", title, "0 to 100%", "99.5% interval", "images")
    return join(table(caption, head, rows), more)


def _pairs(result: Result) -> Markup | None:
    pairs = result.content.get("most_confused")
    if pairs is None and result.content.get("confusion"):
        pairs = _of_matrix(result.content["confusion"], _names(result))
    if not pairs:
        return None
    entries = result.content.get("per_class", [])
    of = {str(entry["name"]): entry.get("images") for entry in entries}
    if len(of) < len(entries):
        # Of two classes with one name it is not known which is meant.
        of = {}
    rows = []
    for pair in pairs[:_MOST_PAIRS]:
        images = of.get(str(pair["class"]))
        share = pair["images"] / images if images else None
        rows.append(
            (str(pair["class"]), str(pair["taken_for"]), number(pair["images"]), percent(share))
        )
    head = ("class", "taken for", "images", "of the class")
    return table(f"Most confused classes of {result.dataset}", head, rows)


def _heatmap(result: Result) -> Markup | None:
    counts = result.content.get("confusion")
    if not counts:
        return None
    names = _names(result)
    if len(names) > _MOST_IN_HEATMAP:
        return tag("p", f"{len(names)} classes are too many for a picture of all confusions.")
    if len(counts) != len(names) or any(len(row) != len(names) for row in counts):
        raise ValueError("it is not as wide as there are classes")
    shares = [[count / max(sum(row), 1) for count in row] for row in counts]
    title = f"What classes of {result.dataset} (rows) are taken for (columns), as a picture"
    inside = tag(
        "div",
        heatmap(title, names, shares),
        class_="wide",
        tabindex=0,
        role="region",
        aria_label=title,
    )
    caption = tag(
        "figcaption", "Rows: what images are. Columns: what they are taken for. ", legend()
    )
    return tag("figure", inside, caption)


def _names(result: Result) -> list[str]:
    return [str(entry["name"]) for entry in result.content["per_class"]]


def _of_matrix(counts: Sequence[Sequence[int]], names: Sequence[str]) -> list[dict[str, Any]]:
    """Of results that were written without the pairs."""
    pairs = [
        {"class": names[i], "taken_for": names[j], "images": count}
        for i, row in enumerate(counts)
        for j, count in enumerate(row)
        if i != j and count
    ]
    return sorted(pairs, key=lambda pair: -pair["images"])
