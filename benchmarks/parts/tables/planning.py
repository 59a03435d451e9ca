"""The planner's tables of the page on planning: RN50x64 on the paper's cards, and on newer ones.

Times and published runs are among the tables of ``benchmarks/report.py``. Memory in every mode
takes half a minute to count, so its tables are written by

    python -c 'from benchmarks.parts.tables.planning import write_memory; write_memory()'
"""

from __future__ import annotations

import functools
import re
from dataclasses import replace
from pathlib import Path

from benchmarks.parts.tables.runs import markdown
from clipfast.data.random_pairs import WEB_MEAN
from clipfast.engine import Config, ModelOptions
from clipfast.plan.machines import machine_of
from clipfast.plan.memory import memory
from clipfast.plan.planning import Planned, plan_decided
from clipfast.plan.published import published_table
from clipfast.plan.question import Question, decided
from clipfast.plan.report import memory_table, run_rows, time_table, travel_table
from recipes.rn50x64 import config

_PAGE = Path(__file__).resolve().parents[3] / "docs" / "planning.md"
_MARKED = re.compile(r"(<!-- plan memory: (\d+) -->\n).*?(\n<!-- end plan -->)", re.DOTALL)


def question_of(gpus: int) -> Question:
    """The page's runs: 592 V100 in whole shares, or 64 A100 in the largest micro-batch that fits
    without recomputation.

    Args:
        gpus: 592 or 64.
    """
    if gpus == 592:
        return _question("full", "v100-32gb", gpus, config())
    return _question("none", "a100-80gb", gpus, replace(config(), micro_batch=64))


def plan_592_time() -> str:
    """A step and a run on 592 V100."""
    return _time(_planned(592))


def plan_592_travel() -> str:
    """What travels between 592 V100."""
    return "\n".join(travel_table(_planned(592)))


def plan_64_time() -> str:
    """A step and a run on 64 A100."""
    return _time(_planned(64))


def plan_64_travel() -> str:
    """What travels between 64 A100."""
    return "\n".join(travel_table(_planned(64)))


def plan_published() -> str:
    """Published runs and the utilisation that they imply."""
    return "\n".join(published_table())


def write_memory(page: Path = _PAGE) -> None:
    """Count memory in every mode, and put the tables into the page.

    Args:
        page: that has their markers.
    """

    def table(match: re.Match[str]) -> str:
        question = question_of(int(match[2]))
        lines = memory_table(memory(question, decided(question)[0]))
        return match[1] + "\n".join(lines) + match[3]

    page.write_text(_MARKED.sub(table, page.read_text()))


def _question(mode: str, card: str, gpus: int, recipe: Config) -> Question:
    model = ModelOptions(recipe.model.name, recompute=mode)  # type: ignore[arg-type]
    recipe = replace(recipe, model=model)
    return Question(recipe, machine_of(card), gpus, round(1.1 * WEB_MEAN))


@functools.lru_cache
def _planned(gpus: int) -> Planned:
    question = question_of(gpus)
    return plan_decided(question, decided(question)[0])


def _time(planned: Planned) -> str:
    # One table: what a run comes to follows the parts of its step.
    return "\n".join([*time_table(planned), "", "In all:", "", _run(planned)])


def _run(planned: Planned) -> str:
    return markdown(["of the run", "planned"], run_rows(planned))
