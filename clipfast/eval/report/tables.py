"""Tables of the page: real ones, that can be sorted and that scroll on a narrow screen."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from clipfast.eval.report.markup import Markup, tag

# Rows of a table that scrolls in itself.
_MOST_ROWS = 45
NOTHING = "\N{EN DASH}"


@dataclass(frozen=True)
class Cell:
    """A cell.

    Attributes:
        content: text or markup.
        order: that rows are sorted by; None: the text.
        is_number: stands at the right.
    """

    content: Any
    order: float | str | None = None
    is_number: bool = False


def key(words: str, colour: int) -> Markup:
    """What a colour of a drawing means.

    Args:
        words: for a person.
        colour: of the style sheet, from 0.
    """
    return tag("span", tag("span", "", class_=f"key s{colour}", aria_hidden="true"), words)


def percent(value: float | None, digits: int = 1) -> Cell:
    """A share as a cell.

    Args:
        value: in [0, 1]; None: undefined.
        digits: behind the point.
    """
    if value is None:
        return Cell(NOTHING, -1.0, is_number=True)
    return Cell(f"{value:.{digits}%}", round(value, 6), is_number=True)


def span(interval: tuple[float, float] | None) -> Cell:
    """An interval as a cell.

    Args:
        interval: of shares; None: not measured.
    """
    if interval is None:
        return Cell(NOTHING, -1.0, is_number=True)
    low, high = interval
    return Cell(f"{low:.1%} to {high:.1%}", round(low, 6), is_number=True)


def number(value: Any, form: str = ",") -> Cell:
    """A number as a cell.

    Args:
        value: None: not known.
        form: of it, as ``format`` takes it.
    """
    if value is None:
        return Cell(NOTHING, -1.0, is_number=True)
    return Cell(format(value, form), value, is_number=True)


def table(
    caption: str,
    head: Sequence[str],
    rows: Iterable[Sequence[Cell | str]],
    *,
    sortable: bool = True,
    titled: bool = False,
    groups: Sequence[str] | None = None,
) -> Markup:
    """A table.

    Args:
        caption: what it shows; screen readers say it first.
        head: titles of the columns.
        rows: of cells. The first is the row's head.
        sortable: columns can be sorted by their heads.
        titled: a heading says the caption already.
        groups: of each row, for a filter.
    """
    body = []
    for place, row in enumerate(rows):
        group = None if groups is None else groups[place]
        body.append(tag("tr", *(_cell(i, cell) for i, cell in enumerate(row)), data_group=group))
    titles = [tag("th", title, scope="col") for title in head]
    made = tag(
        "table",
        tag("caption", tag("span", caption, class_="unseen") if titled else caption),
        tag("thead", tag("tr", *titles)),
        tag("tbody", *body),
        data_sortable=sortable,
    )
    # A region that scrolls must be reached by the keyboard.
    kind = "wide tall" if len(body) > _MOST_ROWS else "wide"
    return tag("div", made, class_=kind, tabindex=0, role="region", aria_label=caption)


def _cell(place: int, cell: Cell | str) -> Markup:
    if isinstance(cell, str):
        cell = Cell(cell)
    kind = "n" if cell.is_number else None
    if place == 0:
        return tag("th", cell.content, scope="row", class_=kind, data_v=cell.order)
    return tag("td", cell.content, class_=kind, data_v=cell.order)
