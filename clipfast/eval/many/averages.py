"""The average over the paper's data sets, of the results in a folder."""

from __future__ import annotations

from pathlib import Path

from clipfast.eval.report.context import Context
from clipfast.eval.report.reading import read_results
from clipfast.eval.report.scores import PROBE, ZERO_SHOT, paper_average, score_of
from clipfast.eval.sets import catalogue

_TASKS = {ZERO_SHOT: "zero-shot", PROBE: "linear probe"}


def averages(folder: Path) -> dict[str, str]:
    """A line per model and task, for a person.

    Args:
        folder: of results.

    Returns:
        By model and task; none where no set of table 9 is there.

    Raises:
        ValueError: there is no result.

    Radford et al. 2021, table 10.
    """
    context = Context(read_results(folder)[0])
    scores: dict[tuple[str, str], dict[str, float]] = {}
    for result in context.results:
        score = score_of(result)
        if result.task in _TASKS and score is not None:
            key = context.label(result), result.task
            scores.setdefault(key, {})[result.dataset] = score.value
    lines = {}
    for (label, task), mine in scores.items():
        average = paper_average(mine)
        if average is not None:
            mean, missing = average
            sets = len(catalogue.list_sets("paper"))
            told = f"{mean:.2%} on average over {sets - len(missing)} of the paper's {sets} sets"
            lines[f"{label} {task}"] = f"{label}, {_TASKS[task]}: {told}"
    return lines
