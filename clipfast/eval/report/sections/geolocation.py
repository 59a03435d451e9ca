"""Shares of images that are placed within some distance (Radford et al. 2021, appendix E.4)."""

from __future__ import annotations

import re

from clipfast.eval.report.charts.bars import bar
from clipfast.eval.report.context import Context
from clipfast.eval.report.markup import Markup
from clipfast.eval.report.scores import interval_of
from clipfast.eval.report.tables import Cell, percent, span, table

TITLE = "Geolocation"
TASK = "geolocation"


def section(context: Context) -> Markup | None:
    """A row per result and distance.

    Args:
        context: of the page.
    """
    rows: list[tuple[Cell | str, ...]] = []
    for result in context.of(TASK):
        intervals = result.content.get("intervals")
        for name, value in result.metrics.items():
            km = _km(name)
            if km is None or value is None:
                continue
            held = interval_of(intervals.get(name)) if isinstance(intervals, dict) else None
            rows.append(
                (
                    result.dataset,
                    context.label(result),
                    Cell(f"{km:,g} km", km, is_number=True),
                    percent(value),
                    Cell(bar(value, held), value),
                    span(held),
                )
            )
    if not rows:
        return None
    head = ("data set", "model", "within", "share", "0 to 100%", "99.5% interval")
    return table("Images placed within a distance of where they were taken", head, rows)


def _km(name: str) -> float | None:
    """The distance in a metric's name, such as ``acc_within_25km`` or ``within_2500_km``."""
    found = re.search(r"(\d+(?:\.\d+)?)[_ ]?km\b", name)
    return float(found[1]) if found else None
