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
    gaps = result.content.get("disparities") or {}
    parts = []
    for name, rows in groups.items():
        parts += [_table(result.dataset, str(name), rows), _gap(gaps.get(name))]
    parts += [_added(result.dataset, design) for design in result.content.get("label_sets") or []]
    return join(*parts)


def _gap(found: Mapping[str, Any] | None) -> Markup | None:
    """How far the groups of a column are apart."""
    if not found or finite(found["gap"]) is None:
        return None
    overlap = "overlap" if found["intervals_overlap"] else "do not overlap"
    return tag(
        "p",
        f"From {found['lowest']} to {found['highest']}: {found['gap'] * 100:.1f} points. "
        f"Their intervals {overlap}.",
    )


def _added(dataset: str, design: Mapping[str, Any]) -> Markup:
    """Shares of each group that are put into categories that were added."""
    categories = list(design["added"])
    everyone = {"value": "all", **design["all"]}
    rows: list[list[Cell | str]] = []
    for column, groups in {"": [everyone], **design["groups"]}.items():
        for group in groups[:_MOST]:
            named = f"{column}: {group['value']}" if column else str(group["value"])
            shares = [percent(finite(group["shares"][name])) for name in categories]
            held = [span(interval_of(group["intervals"].get(name))) for name in categories]
            pairs = [cell for pair in zip(shares, held, strict=True) for cell in pair]
            rows.append([named, number(group["images"]), *pairs])
    names = [f"{name} ({', '.join(map(str, design['added'][name]))})" for name in categories]
    head = [title for name in names for title in (name, "99.5% interval")]
    caption = f"Shares of {dataset} that are put into added categories"
    return table(caption, ("group", "images", *head), rows)


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
