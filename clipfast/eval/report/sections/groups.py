"""Results broken down by the columns of a table (Radford et al. 2021, section 7.1)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from clipfast.eval.report.charts.bars import bar
from clipfast.eval.report.context import Context
from clipfast.eval.report.markup import Markup, join, tag
from clipfast.eval.report.reading import Result, finite
from clipfast.eval.report.scores import interval_of, title_of
from clipfast.eval.report.tables import Cell, number, percent, span, table

TITLE = "Groups"
TASK = "groups"
# Groups of a column that are shown: the largest.
_MOST = 60


def section(context: Context) -> Markup | None:
    """A table per result and column.

    Args:
        context: of the page.
    """
    parts = []
    for result in context.of(TASK):
        made = context.attempt("groups", result, _columns)
        if made is not None:
            parts.append(join(tag("h3", f"{result.dataset}, {context.label(result)}"), made))
    return join(*parts) if parts else None


def _columns(result: Result) -> Markup | None:
    groups = result.content.get("groups")
    if not groups:
        return None
    return join(*(_table(result.dataset, str(name), rows) for name, rows in groups.items()))


def _table(dataset: str, column: str, groups: list[Mapping[str, Any]]) -> Markup:
    largest = sorted(groups, key=lambda group: -group["images"])[:_MOST]
    metrics = list(dict.fromkeys(name for group in largest for name in group["metrics"]))
    # The first is the one that the interval is of.
    main = metrics[0] if metrics else None
    rows: list[list[Cell | str]] = []
    for group in largest:
        values = {name: finite(group["metrics"].get(name)) for name in metrics}
        interval = interval_of(group.get("interval"))
        value = values.get(main) if main else None
        rows.append(
            [
                str(group["value"]),
                number(group["images"]),
                Cell(bar(value, interval), value),
                span(interval),
                *(percent(values[name]) for name in metrics),
            ]
        )
    caption = f"{dataset} by {column}"
    if len(groups) > len(largest):
        caption += f": the {len(largest)} largest of {len(groups):,} groups"
    told = title_of(main) if main else "0 to 100%"
    head = (column, "images", f"{told}, 0 to 100%", "99.5% interval", *map(title_of, metrics))
    return table(caption, head, rows)
