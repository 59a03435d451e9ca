"""What is left on images that were made worse, by kind and severity."""

from __future__ import annotations

from collections.abc import Mapping

from clipfast.eval.report.context import Context
from clipfast.eval.report.markup import Markup, join, tag
from clipfast.eval.report.reading import Result, finite
from clipfast.eval.report.scores import ROBUSTNESS
from clipfast.eval.report.sections.robustness import told_classifier
from clipfast.eval.report.tables import Cell, percent, table

TITLE = "Corruptions"


def section(context: Context) -> Markup | None:
    """A table per result and classifier.

    Args:
        context: of the page.
    """
    parts = []
    for result in context.of(ROBUSTNESS):
        made = context.attempt("corruptions", result, _tables)
        if made is not None:
            parts.append(join(tag("h3", f"{result.dataset}, {context.label(result)}"), made))
    return join(*parts) if parts else None


def _tables(result: Result) -> Markup | None:
    found: Mapping[str, Mapping[str, Mapping[str, Mapping[str, float]]]]
    found = result.content.get("corruptions") or {}
    whole = finite(result.metrics.get("reference_acc1"))
    made = []
    for classifier, one in found.items():
        # The result has this number of zero-shot alone.
        is_known = classifier == "zeroshot" and whole is not None
        told = f"; {whole:.1%} on the images as they are" if is_known else ""
        caption = f"Top-1 on {result.dataset}, {told_classifier(classifier)}, by severity{told}"
        made.append(_table(caption, one["by_corruption"]))
    return tag("div", *made, class_="beside") if made else None


def _table(caption: str, shares: Mapping[str, Mapping[str, float]]) -> Markup:
    severities = sorted({int(severity) for one in shares.values() for severity in one})
    rows: list[list[Cell | str]] = []
    for name, one in shares.items():
        known = {int(severity): finite(share) for severity, share in one.items()}
        values = [share for share in known.values() if share is not None]
        mean = sum(values) / len(values) if values else None
        cells = [_shaded(known.get(severity)) for severity in severities]
        rows.append([name.replace("_", " "), *cells, percent(mean)])
    return table(caption, ("corruption", *map(str, severities), "mean"), rows)


def _shaded(share: float | None) -> Cell:
    """A cell with the shade of its share."""
    cell = percent(share)
    if share is None:
        return cell
    shade = min(8, max(0, int(share * 8) + 1)) if share > 0 else 0
    return Cell(tag("span", cell.content, class_=f"shade b{shade}"), cell.order, is_number=True)
