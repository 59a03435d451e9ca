"""A part of the suite, and what became of it."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass, field

ROWS, TESTS = "rows", "tests"


@dataclass(frozen=True)
class Part:
    """One command of the suite.

    Attributes:
        name: For ``--only``, files and the table; letters, digits and dashes.
        what: What it gives, in a few words.
        command: Arguments of Python. The suite appends where its rows go, or its JUnit file.
        seconds: What it takes on the machine that the costs were taken on; see ``catalogue.py``.
        kind: ``rows`` or ``tests``.
        needs: Modules without which nothing of it can run.
        any_of: Modules of which one is enough.
        environment: Variables that it is started with; an empty one is removed.
        evidence: Beginnings or ends of names of rows that this part alone writes; the report's
            tables know by them whether it was measured. Empty where its counted rows tell.
        is_scaled: Whether a slower machine takes longer for it in proportion.
    """

    name: str
    what: str
    command: tuple[str, ...]
    seconds: float
    kind: str = ROWS
    needs: tuple[str, ...] = ()
    any_of: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    evidence: tuple[str, ...] = ()
    is_scaled: bool = True

    def missing(self) -> list[str]:
        """What it needs and this Python has not."""
        absent = [name for name in self.needs if importlib.util.find_spec(name) is None]
        if self.any_of and not any(importlib.util.find_spec(name) for name in self.any_of):
            absent.append(" or ".join(self.any_of))
        return absent


# What may become of a part. Of these, FAILURES make the suite's exit code 1.
DONE, FAILED, HUNG, MEMORY = "done", "failed", "hung", "out of memory"
CUT, NO_TIME, NEEDS, INTERRUPTED = "cut short", "no time", "needs", "interrupted"
FAILURES = (FAILED, HUNG, MEMORY)


@dataclass(frozen=True)
class Outcome:
    """What became of a part.

    Attributes:
        name: The part's.
        status: One of the above.
        seconds: What it took.
        gave: Rows written, or tests passed and skipped, in words.
        reason: Why it has not done its work; empty where it has.
    """

    name: str
    status: str
    seconds: float = 0.0
    gave: str = ""
    reason: str = ""

    @property
    def is_failure(self) -> bool:
        return self.status in FAILURES
