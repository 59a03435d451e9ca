"""Recalls both ways (Radford et al. 2021, appendix E.1)."""

from __future__ import annotations

import re

from clipfast.eval.report.context import Context
from clipfast.eval.report.markup import Markup, join, tag
from clipfast.eval.report.reading import Result, finite
from clipfast.eval.report.scores import RETRIEVAL, interval_of
from clipfast.eval.report.tables import Cell, percent, table

TITLE = "Retrieval"
# How captions are put, the recalls, and their intervals.
_Measure = tuple[str, dict[str, object], dict[str, object]]
_OPEN, _CLOSE = "\N{LEFT DOUBLE QUOTATION MARK}", "\N{RIGHT DOUBLE QUOTATION MARK}"
_WAYS = {"image_retrieval": "text to image", "text_retrieval": "image to text"}


def section(context: Context) -> Markup | None:
    """A row per result and way.

    Args:
        context: of the page.
    """
    results = context.of(RETRIEVAL)
    if not results:
        return None
    at = sorted({k for result in results for name in result.metrics if (k := _k(name))})
    rows: list[list[Cell | str]] = []
    for result in results:
        for words, metrics, intervals in context.tried("recalls", result, _measures) or []:
            for way, told in _WAYS.items():
                cells = [_cell(metrics, intervals, f"{way}_recall@{k}") for k in at]
                rows.append([result.dataset, context.label(result), told, words, *cells])
    head = ("data set", "model", "way", "captions", *(f"R@{k}" for k in at))
    return table("Recalls: shares of queries with a right answer among the first K", head, rows)


def _k(name: str) -> int | None:
    found = re.fullmatch(r"(?:image|text)_retrieval_recall@(\d{1,6})", name)
    return int(found[1]) if found else None


def _measures(result: Result) -> list[_Measure]:
    content = result.content
    found: list[_Measure] = [
        ("as they are", dict(result.metrics), dict(content.get("intervals", {})))
    ]
    if "with_prefix" in content:
        more = content["with_prefix"]
        words = f"behind {_OPEN}{more['prefix']}{_CLOSE}"
        found.append((words, dict(more["metrics"]), dict(more.get("intervals", {}))))
    if "chance" in content:
        found.append(("in a random order", dict(content["chance"]), {}))
    return found


def _cell(metrics: dict[str, object], intervals: dict[str, object], name: str) -> Cell:
    value = finite(metrics.get(name))
    interval = interval_of(intervals.get(name))
    cell = percent(value)
    if value is None or interval is None:
        return cell
    half = (interval[1] - interval[0]) / 2
    small = tag("small", f"\N{PLUS-MINUS SIGN}{half:.1%}")
    return Cell(join(cell.content, " ", small), cell.order, is_number=True)
