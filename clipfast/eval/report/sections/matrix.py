"""Data sets by models, and the average over the paper's sets."""

from __future__ import annotations

from collections.abc import Mapping

from clipfast.eval.report.context import Context
from clipfast.eval.report.markup import Markup, join, tag
from clipfast.eval.report.scores import (
    PROBE,
    ZERO_SHOT,
    Score,
    paper_average,
    score_of,
)
from clipfast.eval.report.tables import Cell, percent, table
from clipfast.eval.sets import catalogue

TITLE = "Data sets and models"
_TASKS = {ZERO_SHOT: "Zero-shot classification", PROBE: "Linear probe"}


def section(context: Context) -> Markup | None:
    """A table per task.

    Args:
        context: of the page.
    """
    made = [_task(context, task, words) for task, words in _TASKS.items()]
    found = [part for part in made if part is not None]
    return join(*found) if found else None


def _task(context: Context, task: str, words: str) -> Markup | None:
    scores: dict[str, dict[str, Score]] = {}
    for result in context.of(task):
        score = score_of(result)
        if score is not None:
            name = catalogue.plain_name(result.dataset)
            # Of several files of one set and model the last in order; all stand in the first table.
            scores.setdefault(name, {})[context.label(result)] = score
    if not scores:
        return None
    models = [label for label in context.labels if any(label in row for row in scores.values())]
    rows: list[list[Cell | str]] = []
    for name, row in scores.items():
        metric = ", ".join(dict.fromkeys(score.title for score in row.values()))
        rows.append([name, metric, *(_cell(row.get(label)) for label in models)])
    return join(
        tag("h3", words),
        table(words, ("data set", "metric", *models), rows, titled=True),
        _averages(scores, models),
    )


def _cell(score: Score | None) -> Cell:
    if score is None:
        return percent(None)
    cell = percent(score.value)
    if score.interval is None:
        return cell
    half = (score.interval[1] - score.interval[0]) / 2
    text = join(cell.content, " ", tag("small", f"\N{PLUS-MINUS SIGN}{half:.1%}"))
    return Cell(text, cell.order, is_number=True)


def _averages(scores: Mapping[str, Mapping[str, Score]], models: list[str]) -> Markup | None:
    rows: list[list[Cell | str]] = []
    for label in models:
        mine = {name: row[label].value for name, row in scores.items() if label in row}
        average = paper_average(mine)
        if average is None:
            continue
        mean, missing = average
        there = len(catalogue.list_sets("paper")) - len(missing)
        rows.append([label, percent(mean), f"{there} of {there + len(missing)}", _folded(missing)])
    if not rows:
        return None
    head = ("model", "mean", "sets", "not there")
    caption = "Mean over the 27 data sets of Radford et al. 2021, table 9, each by its own metric"
    return table(caption, head, rows)


def _folded(missing: list[str]) -> Cell:
    if not missing:
        return Cell("none", 0)
    inside = tag("details", tag("summary", f"{len(missing)} sets"), ", ".join(missing))
    return Cell(inside, len(missing))
