"""What is to be done: a task on a set, with options of its own."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from clipfast.eval.sets import catalogue
from clipfast.eval.sets.tables import read_table

_RETRIEVAL, _ZERO_SHOT = "retrieval", "zeroshot"
_DATA, _TASKS = "data", "tasks"
_YES, _NO = ("true", "yes", "1"), ("false", "no", "0", "")


@dataclass(frozen=True)
class Job:
    """One task on one set.

    Attributes:
        data: as ``--data`` takes it.
        task: a subcommand.
        options: of its own, by their names on the command line without dashes in front.
    """

    data: str
    task: str
    options: dict[str, str] = field(default_factory=dict)

    def words(self, flags: Iterable[str]) -> list[str]:
        """Its options as a command line.

        Args:
            flags: options that have no value.

        Raises:
            ValueError: the value of a flag is neither yes nor no.
        """
        words = ["--data", self.data]
        for name, value in self.options.items():
            if name not in flags:
                words += [f"--{name}", *shlex.split(value)]
            elif value.lower() in _YES:
                words.append(f"--{name}")
            elif value.lower() not in _NO:
                raise ValueError(f"{self.data}: {name} is yes or no; got {value!r}")
        return words


def jobs_of_sets(data: Sequence[str], tasks: Sequence[str] | None) -> list[Job]:
    """The tasks of some sets.

    Args:
        data: as ``--data`` takes it.
        tasks: subcommands; None: retrieval where the catalogue has captions, else zero-shot.

    Returns:
        Jobs, set by set. What the catalogue says has captions, or classes, gets those that fit.
    """
    jobs = []
    for one in data:
        name, is_named, _ = one.partition(":")
        entry = catalogue.find_entry(name) if is_named else None
        has_captions = entry is not None and entry.group == "captions"
        if tasks is None:
            jobs.append(Job(one, _RETRIEVAL if has_captions else _ZERO_SHOT))
            continue
        fit = [t for t in tasks if entry is None or (t == _RETRIEVAL) == has_captions]
        jobs += [Job(one, task) for task in fit]
    return jobs


def jobs_of_table(path: Path, tasks: Sequence[str] | None) -> list[Job]:
    """The rows of a table.

    Its column ``data`` names a set, ``tasks`` the subcommands, separated by blanks or commas. Every
    other column is an option of them, such as ``split``; an empty cell leaves it out.

    Args:
        path: of a ``.csv``, ``.tsv``, ``.jsonl`` or ``.parquet``.
        tasks: of rows that name none.

    Raises:
        ValueError: the table cannot be read, or a row names no set.
    """
    table = read_table(path)
    if _DATA not in table.columns:
        raise ValueError(f"{path} has no column 'data': it names a set, as --data does")
    jobs: list[Job] = []
    for row in range(len(table)):
        cells = {name: _text(cells[row]) for name, cells in table.columns.items()}
        data = cells.pop(_DATA)
        if not data:
            raise ValueError(f"{table.where(row)}: column 'data' is empty; name a set")
        own = re.split(r"[\s,]+", named) if (named := cells.pop(_TASKS, "")) else tasks
        options = {name.lstrip("-").replace("_", "-"): v for name, v in cells.items() if v}
        jobs += [Job(data, job.task, options) for job in jobs_of_sets([data], own)]
    return jobs


def _text(cell: object) -> str:
    if isinstance(cell, list):
        return " ".join(shlex.quote(str(one)) for one in cell)
    return "" if cell is None else str(cell).strip()
