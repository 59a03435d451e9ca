"""Rows by the run that measured them, and cells of a Markdown table.

Only rows of one run stand side by side: machines differ, and so do the minutes of a shared one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.parts.common.harness import Row
from benchmarks.parts.common.rows import RESULTS, by_case, device_name, read_rows
from benchmarks.parts.common.text import digits, mebibytes

NOT_MEASURED = "not measured"


@dataclass(frozen=True)
class Run:
    """Rows that one call of a benchmark has written.

    Attributes:
        rows: In the order in which they were written.
    """

    rows: tuple[Row, ...]

    @property
    def machine(self) -> str:
        """What it was measured on."""
        return device_name(self.rows[0])

    @property
    def date(self) -> str:
        """When, in UTC, ISO 8601."""
        return str(self.rows[0]["environment"]["date"])

    def cases(self, *fields: str) -> list[Run]:
        """Its rows apart by what these fields say."""
        groups = by_case(self.rows, lambda row: tuple(row.get(field) for field in fields))
        return [Run(tuple(chosen)) for chosen in groups.values()]

    def find(self, **fields: Any) -> Row | None:
        """The row whose fields have these values; None where there is none."""
        for row in self.rows:
            if all(row.get(key) == value for key, value in fields.items()):
                return row
        return None

    def starting(self, name: str) -> Row | None:
        """The row of a peer, whose name goes on with a version; its variants come after a comma."""
        for row in self.rows:
            if row["name"].startswith(name) and "," not in row["name"]:
                return row
        return None


def read_runs(subject: str, directory: Path | None = None) -> list[Run]:
    """The runs in a subject's file, the newest first; none where the file is missing."""
    if not ((directory or RESULTS) / f"{subject}.jsonl").exists():
        return []
    groups = by_case(read_rows(subject, directory=directory), _run_of)
    runs = [Run(tuple(chosen)) for chosen in groups.values()]
    return sorted(runs, key=lambda run: run.date, reverse=True)


def _run_of(row: Row) -> tuple[str, str, str]:
    stamp = row["environment"]
    return row["device"].split(":")[0], stamp["commit"], stamp["date"]


def peer_name(runs: Sequence[Run], peer: str = "OpenCLIP") -> str:
    """The peer with its version, which is left out where runs had several."""
    names = {row["name"] for run in runs if (row := run.starting(peer))}
    return names.pop() if len(names) == 1 else peer


def beside(runs: Sequence[Run], theirs: Row | None) -> str:
    """Which version stands beside a line, where a table's runs had several."""
    if theirs is None or peer_name(runs) == theirs["name"]:
        return ""
    return f", beside {theirs['name'].removeprefix('OpenCLIP ')}"


def ratio(value: float | None) -> str:
    """A ratio's cell."""
    if value is None:
        return NOT_MEASURED
    return f"{value:.1f}x" if value >= 10 else f"{value:.2f}x"


def number(row: Row | None, key: str, unit: float = 1) -> str:
    """A number's cell, with three digits."""
    return NOT_MEASURED if row is None or row.get(key) is None else digits(row[key], unit)


def memory(row: Row | None, key: str = "peak_extra_bytes") -> str:
    """A cell of bytes, in MiB."""
    return NOT_MEASURED if row is None or row.get(key) is None else mebibytes(row[key])


def error(row: Row | None, key: str = "error") -> str:
    """A cell of a relative error, with one digit."""
    if row is None or row.get(key) is None:
        return NOT_MEASURED
    return f"{row[key]:.0e}".replace("e-0", "e-")


def markdown(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    rows = [head, ["---"] * len(head), *lines]
    return "\n".join(re.sub(r"\|  (?=\|)", "| ", f"| {' | '.join(cells)} |") for cells in rows)


def by_machine(runs: Sequence[Run], render: Callable[[Sequence[Run]], str]) -> str:
    """One table, or one per machine under its name where there are several.

    Args:
        runs: Of one subject.
        render: Makes a table of one machine's runs.
    """
    machines: dict[str, list[Run]] = {}
    for run in runs:
        machines.setdefault(run.machine, []).append(run)
    if len(machines) <= 1:
        return render(runs)
    return "\n\n".join(f"{name}:\n\n{render(chosen)}" for name, chosen in machines.items())
