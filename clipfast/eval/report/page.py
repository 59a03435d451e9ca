"""The page: one file, that loads nothing."""

from __future__ import annotations

import importlib
from pathlib import Path

from clipfast.eval.report.context import Context
from clipfast.eval.report.document import document
from clipfast.eval.report.markup import Markup, join, tag
from clipfast.eval.report.sections import SECTIONS

_MOST_ODD = 200


def page(context: Context, folder: Path) -> Markup:
    """All of the page.

    Args:
        context: of the results.
        folder: that paths of files start from.
    """
    made = []
    for name in SECTIONS:
        module = importlib.import_module(f"clipfast.eval.report.sections.{name}")
        content = module.section(context)
        if content is not None:
            made.append((name, module.TITLE, content))
    head = join(tag("p", _counts(context)), _odd(context, folder))
    return document("Evaluation report", head, made)


def _counts(context: Context) -> str:
    sets = {result.dataset for result in context.results}
    return (
        f"{len(context.results)} results of {len(context.labels)} model(s) on {len(sets)} data "
        "set(s). Intervals are those of the results: Clopper-Pearson, 99.5%."
    )


def _odd(context: Context, folder: Path) -> Markup | None:
    """Asked for last: sections find what is damaged."""
    if not context.odd:
        return None
    lines = []
    for odd in context.odd[:_MOST_ODD]:
        path = odd.path.relative_to(folder) if odd.path.is_relative_to(folder) else odd.path
        lines.append(tag("li", tag("code", path), f": {odd.why}"))
    title = f"{len(context.odd)} file(s) or parts of them cannot be read and are left out"
    return tag("details", tag("summary", title), tag("ul", *lines), class_="odd")
