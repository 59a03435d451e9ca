"""All results, one a row."""

from __future__ import annotations

from clipfast.eval.report.charts.bars import interval_mark
from clipfast.eval.report.context import Context
from clipfast.eval.report.csvfile import images_of
from clipfast.eval.report.markup import Markup, join, tag
from clipfast.eval.report.scores import score_of
from clipfast.eval.report.tables import Cell, number, percent, span, table

TITLE = "All results"
_HEAD = ("data set", "model", "task", "metric", "value", "0 to 100%", "99.5% interval", "images")


def section(context: Context) -> Markup | None:
    """A table that can be sorted, and filtered by words and by task.

    Args:
        context: of the page.
    """
    rows, tasks = [], []
    for result in context.results:
        score = score_of(result)
        named = (
            result.dataset
            if result.language in ("", "en")
            else (f"{result.dataset} ({result.language})")
        )
        tasks.append(result.task)
        value: tuple[Cell | str, ...] = ("", percent(None), "", span(None))
        # Other numbers than shares have no place on a line from 0 to 100%.
        if score is not None and 0 <= score.value <= 1:
            value = (
                score.title,
                percent(score.value),
                Cell(interval_mark(score.value, score.interval), score.value),
                span(score.interval),
            )
        elif score is not None:
            value = (score.title, number(score.value, ".4g"), "", span(None))
        rows.append(
            (
                named,
                Cell(tag("span", context.label(result), title=result.pretrained)),
                result.task.replace("_", " "),
                *value,
                number(images_of(result)),
            )
        )
    return join(
        _filter(sorted(set(tasks))), table("All results", _HEAD, rows, titled=True, groups=tasks)
    )


def _filter(tasks: list[str]) -> Markup:
    """Works where scripts run; hidden elsewhere."""
    options = [tag("option", "all tasks", value="")]
    options += [tag("option", task.replace("_", " "), value=task) for task in tasks]
    return tag(
        "form",
        tag("label", "Filter ", tag("input", type="search", id="words")),
        tag("label", "Task ", tag("select", *options, id="task")) if len(tasks) > 1 else None,
        tag("output", id="shown", aria_live="polite"),
        id="filter",
        hidden=True,
    )
