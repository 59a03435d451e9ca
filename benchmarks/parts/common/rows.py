"""Rows on disk: JSON lines of the one form of :mod:`schema`, stamped, written as they come.

rows = RowFile("tokenizer", options)
for case in cases:
    rows.add(measure(case))  # a benchmark that is killed keeps what it had
rows.finish(plot)
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.parts.common.harness import CheckFailed, Row
from benchmarks.parts.common.schema import device_name as device_name
from benchmarks.parts.common.schema import to_record, to_row
from clipfast.files import write_whole

RESULTS = Path(__file__).parents[2] / "results"


def stamped(subject: str, rows: Sequence[Row], environment: dict[str, Any]) -> list[Row]:
    """Rows as they are written.

    Args:
        subject: What was measured.
        rows: Of :func:`harness.measure`.
        environment: Of :func:`clipfast.env.stamp`.

    Raises:
        CheckFailed: A row did not come from a checked measurement.
    """
    for row in rows:
        if row.get("checked") is not True:
            raise CheckFailed(f"row {row.get('name')!r} has no passed check: it is not written")
    return [{"subject": subject, **row, "environment": environment} for row in rows]


def append_rows(path: Path, rows: Sequence[Row]) -> None:
    """Add rows to the end of a file, all of them or none where the process is killed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab", buffering=0) as file:  # one call of the system
        file.write(_lines(rows))


def read_rows(subject: str, *, directory: Path | None = None) -> list[Row]:
    """The rows of a subject's file in ``benchmarks/results``, or in another folder."""
    return read_file((directory or RESULTS) / f"{subject}.jsonl")


def read_file(path: Path) -> list[Row]:
    """The rows of one file, as their benchmarks made them."""
    return [to_row(json.loads(line)) for line in path.read_text().splitlines()]


class RowFile:
    """The rows of one run on one device, each case on disk once it is measured.

    ``--json PATH`` is emptied at the start, and rows are appended to it. Without it, under the
    default options and with ``--save``, rows go to ``benchmarks/results``. There a case takes the
    place of the same case of a CPU, or of the same card, and other rows stay. A default run that
    came to its end has measured all cases: rows of cases that are no more go then.

    Args:
        subject: Name of the files in ``benchmarks/results``.
        options: Of :func:`options.parse`: ``json`` and ``plot`` are files to write instead.
        case_of: What rows of one case have in common, and no others, beside the device.
    """

    def __init__(
        self, subject: str, options: argparse.Namespace, case_of: Callable[[Row], Any]
    ) -> None:
        self.subject, self.options = subject, options
        self._case_of = case_of
        self._environment: dict[str, Any] | None = None
        # Stamped, in the order in which they came.
        self.rows: list[Row] = []
        self._earlier: list[Row] = []
        self._is_kept = options.is_default or getattr(options, "save", False)
        self.path: Path | None = options.json
        if self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.write_bytes(b"")
        elif self._is_kept:
            self.path = RESULTS / f"{subject}.jsonl"
            self._earlier = read_file(self.path) if self.path.exists() else []

    def add(self, rows: Sequence[Row]) -> None:
        """Write rows, and keep them for the plot.

        Args:
            rows: Of one case, or a part of them.

        Raises:
            CheckFailed: A row did not come from a checked measurement.
        """
        if self._environment is None:
            from clipfast.env import stamp

            self._environment = stamp()
        new = stamped(self.subject, rows, self._environment)
        self.rows += new
        if self.options.json is not None:
            append_rows(self.options.json, new)
        elif self.path is not None and new:
            cases = [self._key(row) for row in self.rows]
            self._earlier = [row for row in self._earlier if self._key(row) not in cases]
            self._replace()

    def finish(self, draw: Callable[[Sequence[Row], Path], Path] | None = None) -> None:
        """Draw the rows and say where they are; nothing where there are none.

        Args:
            draw: Makes the plot from all rows of the file; None where there is none to make.
        """
        if not self.rows:
            return
        if self.options.is_default and self.path is not None:
            kinds = {_kind(row) for row in self.rows}
            self._earlier = [row for row in self._earlier if _kind(row) not in kinds]
            self._replace()
        print(f"\nrows: {self.path or 'not written; --json PATH writes them'}")
        if draw is None:
            return
        picture = self.options.plot
        if picture is None and self._is_kept:
            picture = RESULTS / f"{self.subject}.png"
        if picture is not None:
            # Other devices' rows too.
            draw([*self._earlier, *self.rows], picture)
        print(f"plot: {picture or 'not drawn; --plot PATH draws it'}")

    def _key(self, row: Row) -> Any:
        return _kind(row), self._case_of(row)

    def _replace(self) -> None:
        assert self.path is not None
        lines = _lines([*self._earlier, *self.rows])
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(self.path, lines)


def _kind(row: Row) -> str:
    """A CPU, or which card: rows of one do not take the place of another's."""
    kind = str(row["device"]).split(":")[0]
    return kind if kind == "cpu" else device_name(row)


def _lines(rows: Sequence[Row]) -> bytes:
    return "".join(json.dumps(to_record(row)) + "\n" for row in rows).encode()


def by_case(rows: Sequence[Row], case_of: Callable[[Row], Any]) -> dict[Any, list[Row]]:
    """Rows by what ``case_of`` says of them, in the order in which they come."""
    groups: dict[Any, list[Row]] = {}
    for row in rows:
        groups.setdefault(case_of(row), []).append(row)
    return groups


def faster(ours: Row | None, theirs: Row | None) -> float | None:
    """How many times as fast ours is.

    The median over rounds of alternating runs. Where the benchmark has none, both are set in
    ratio to what it has them for. None where either row is missing.
    """
    if ours is None or theirs is None:
        return None
    if (paired := theirs.get(f"ratio_to_{ours['name']}")) is not None:
        return paired
    for key in theirs:
        if key.startswith("ratio_to_") and key != "ratio_to_floor" and key in ours:
            return theirs[key] / ours[key]
    return theirs["median_ms"] / ours["median_ms"]
