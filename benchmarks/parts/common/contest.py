"""What becomes of a contender that has no row."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from benchmarks.parts.common.harness import CheckFailed


class NotMeasured(Exception):
    """A contender cannot run here; the text says why."""


@dataclass(frozen=True)
class Absence:
    """A contender without a row.

    Attributes:
        name: As in the table.
        reason: Why, in one line; see :func:`reason_of`.
        is_ours: Whether it is a form of clipfast. The program then ends with status 1.
    """

    name: str
    reason: str
    is_ours: bool


def reason_of(error: Exception) -> str:
    """Why a contender has no row, in one line."""
    if isinstance(error, CheckFailed):
        return f"wrong, so not timed: {error}"
    if isinstance(error, NotMeasured):
        return f"not measured: {error}"
    if isinstance(error, torch.OutOfMemoryError):
        return "not measured: out of memory"
    words = str(error).strip().splitlines() or [""]
    return f"not measured: {type(error).__name__}: {words[0]}"


def require_ours(absent: list[Absence]) -> None:
    """End the program where a form of clipfast has no row.

    Raises:
        SystemExit: Names what has none.
    """
    if failed := [absence.name for absence in absent if absence.is_ours]:
        raise SystemExit(f"clipfast has no figure for: {', '.join(failed)}")
