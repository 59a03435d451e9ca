"""Runs the parts in their order until the time is used, and tells what became of them."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from xml.etree import ElementTree

from benchmarks.parts.common.text import align
from benchmarks.parts.suite import part as of
from benchmarks.parts.suite import process
from benchmarks.parts.suite.journal import Journal
from benchmarks.parts.suite.part import Outcome, Part

ROOT = Path(__file__).resolve().parents[3]
# What ending a part and printing the table take.
RESERVE = process.GRACE + 1.0
_OUT_OF_MEMORY = re.compile(r"OutOfMemoryError|out of memory|MemoryError|std::bad_alloc")
_SIGKILL = 9


class Budget:
    """Wall time, from when it is made.

    Args:
        seconds: All there are; None is no end.
    """

    def __init__(self, seconds: float | None) -> None:
        self._began = time.monotonic()
        self.seconds = seconds

    @property
    def used(self) -> float:
        return time.monotonic() - self._began

    @property
    def left(self) -> float:
        return float("inf") if self.seconds is None else self.seconds - RESERVE - self.used


def run_parts(
    parts: Sequence[Part],
    journal: Journal,
    budget: Budget,
    *,
    slowness: Callable[[], float] = lambda: 1.0,
    say: Callable[[str], object] = print,
) -> list[Outcome]:
    """Run what fits, in order of worth.

    Args:
        parts: The best first. Those done before are not run again. Those that failed come last.
        journal: Where rows, logs and outcomes go.
        budget: The time. A part that would not fit is passed over for one that does.
        slowness: How many times as long this machine takes for a part as the one of its costs;
            asked before each part, since the first one measures it.
        say: Prints a line.

    Returns:
        One outcome per part, in the order of ``parts``, those of earlier runs included.
    """
    before = journal.outcomes()
    outcomes = {name: outcome for name, outcome in before.items() if outcome.status == of.DONE}
    todo = [part for part in parts if part.name not in outcomes]
    failed = {name for name, outcome in before.items() if outcome.is_failure}
    # What failed may fail again: all else has its turn first.
    waiting = sorted(todo, key=lambda part: part.name in failed)
    total = len(waiting)
    for number, one in enumerate(waiting, 1):
        cost = predicted(one, before.get(one.name), slowness())
        head = f"[{budget.used:4.0f} s{_of(budget)}] {number}/{total} {one.name}"
        if absent := one.missing():
            outcomes[one.name] = Outcome(one.name, of.NEEDS, reason=", ".join(absent))
            say(f"{head}: not run: needs {', '.join(absent)}")
            continue
        if cost > budget.left:
            reason = f"takes about {cost:.0f} s"
            outcomes[one.name] = Outcome(one.name, of.NO_TIME, reason=reason)
            say(f"{head}: not run: no time: {reason}")
            continue
        say(f"{head}: about {cost:.0f} s: {one.what}")
        # A try that failed at once says nothing of how long the part may take.
        limit = limit_of(max(cost, predicted(one, None, slowness())))
        outcome = run_part(one, journal, budget, limit)
        journal.add(outcome)
        outcomes[one.name] = outcome
        told = f": {outcome.reason}" if outcome.reason else ""
        say(f"  {outcome.status} in {outcome.seconds:.0f} s, {outcome.gave or 'nothing'}{told}")
    return [outcomes[one.name] for one in parts]


def _of(budget: Budget) -> str:
    return "" if budget.seconds is None else f" of {budget.seconds:.0f}"


def predicted(part: Part, before: Outcome | None, slowness: float) -> float:
    """Seconds that a part will take: by its last try where that ended, else by its cost."""
    if before is not None and before.status in (of.FAILED, of.MEMORY):
        return before.seconds
    return part.seconds * (max(1.0, slowness) if part.is_scaled else 1.0)


def limit_of(cost: float) -> float:
    """Seconds after which a part hangs, whatever the budget."""
    return 60 + 3 * cost


def run_part(part: Part, journal: Journal, budget: Budget, limit: float) -> Outcome:
    """Run one part, and say what became of it.

    Args:
        part: The part.
        journal: Where its rows and its log go.
        budget: What is left of it ends the part too.
        limit: Seconds after which it hangs.
    """
    rows, log, junit = journal.rows(part.name), journal.log(part.name), journal.junit(part.name)
    for stale in (rows, junit):
        stale.unlink(missing_ok=True)
    where = ("--json", str(rows)) if part.kind == of.ROWS else (f"--junitxml={junit}",)
    show = _Line(part, rows, budget)
    allowed = min(limit, max(0.0, budget.left))
    try:
        ended = process.run(
            [*part.command, *map(str, where)],
            log,
            allowed,
            cwd=ROOT,
            environment=part.environment,
            tick=show,
        )
    except KeyboardInterrupt:
        journal.add(Outcome(part.name, of.INTERRUPTED, gave=given(part, rows, junit)))
        raise
    finally:
        show.clear()
    gave = given(part, rows, junit)
    status, reason = _status(ended, log, is_time_up=allowed < limit)
    if status == of.DONE and not gave:
        status, reason = of.FAILED, "it ended well and wrote nothing"
    if status == of.DONE and gave.startswith("0 passed"):
        status, reason = of.FAILED, f"no test was run; see {log}"
    return Outcome(part.name, status, round(ended.seconds, 1), gave, reason)


def _status(ended: process.Ended, log: Path, *, is_time_up: bool) -> tuple[str, str]:
    if ended.is_cut:
        if is_time_up:
            return of.CUT, f"the suite's time was up after {ended.seconds:.0f} s"
        return of.HUNG, f"it did not end in {ended.seconds:.0f} s; see {log}"
    if ended.code == 0:
        return of.DONE, ""
    told = tail(log)
    if _OUT_OF_MEMORY.search(told) or ended.code == -_SIGKILL:
        return of.MEMORY, last_line(told) or "killed"
    how = f"signal {-ended.code}" if ended.code < 0 else f"exit {ended.code}"
    return of.FAILED, f"{how}: {last_line(told)}"


def tail(log: Path, size: int = 4000) -> str:
    """The end of a log."""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - size))
        return file.read().decode(errors="replace")


def last_line(text: str) -> str:
    """The last line that says something, at most 160 letters of it."""
    lines = [line.strip(" =") for line in text.replace("\r", "\n").splitlines() if line.strip(" =")]
    return lines[-1][:160] if lines else ""


def given(part: Part, rows: Path, junit: Path) -> str:
    """What a part has written so far, in words."""
    if part.kind == of.ROWS:
        count = len(rows.read_bytes().splitlines()) if rows.exists() else 0
        return f"{count} rows" if count else ""
    if not junit.exists():
        return ""
    try:
        suite = ElementTree.parse(junit).getroot().find("testsuite")
    except ElementTree.ParseError:
        return ""  # it was ended as it wrote
    if suite is None:
        return ""
    count = {key: int(suite.get(key, 0)) for key in ("tests", "failures", "errors", "skipped")}
    bad = count["failures"] + count["errors"]
    passed = count["tests"] - bad - count["skipped"]
    words = [f"{passed} passed", f"{bad} failed" * bool(bad)]
    return ", ".join(filter(None, [*words, f"{count['skipped']} skipped" * bool(count["skipped"])]))


def table(parts: Sequence[Part], outcomes: Sequence[Outcome]) -> str:
    """Part, what it gave, seconds, and what became of it."""
    lines = [["part", "gave", "seconds", "status"]]
    for one, outcome in zip(parts, outcomes, strict=True):
        status = outcome.status
        if status in (of.NO_TIME, of.NEEDS):
            status = f"not run: {status}"
        join = " " if outcome.status == of.NEEDS else ": "
        told = f"{join}{outcome.reason}" if outcome.reason else ""
        seconds = f"{outcome.seconds:.0f}" if outcome.seconds else ""
        lines.append([one.name, outcome.gave, seconds, f"{status}{told}"])
    # The last column is prose: to the left, unlike figures.
    text = align([line[:3] for line in lines]).splitlines()
    return "\n".join(f"{row}  {line[3]}".rstrip() for row, line in zip(text, lines, strict=True))


class _Line:
    """On a terminal, one line that says how long a part has run and what is left."""

    def __init__(self, part: Part, rows: Path, budget: Budget) -> None:
        self._part, self._rows, self._budget = part, rows, budget
        self._shown = 0
        self._is_terminal = sys.stderr.isatty()

    def __call__(self, seconds: float) -> None:
        if not self._is_terminal or int(seconds) == self._shown:
            return
        self._shown = int(seconds)
        left = "" if self._budget.seconds is None else f", {self._budget.left:.0f} s left"
        gave = given(self._part, self._rows, Path("/nonexistent"))
        told = f"  {self._part.name}: {seconds:.0f} s{left}{', ' + gave if gave else ''}"
        print(f"\r{told:<78}", end="", file=sys.stderr, flush=True)

    def clear(self) -> None:
        if self._shown:
            print(f"\r{'':<78}\r", end="", file=sys.stderr, flush=True)
