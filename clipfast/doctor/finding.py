"""What a check finds, in words for a person."""

import textwrap
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

Level = Literal["ok", "warning", "failure"]
_WIDTH = 100
_INDENT = 21


@dataclass(frozen=True)
class Finding:
    """One thing that a check has found.

    Attributes:
        level: a failure makes the exit status 1; a warning does not.
        seen: what is so.
        remedy: what to do; empty where all is well.
        ranks: that it is about; empty means all.
        check: its name; filled in by the examination.
    """

    level: Level
    seen: str
    remedy: str = ""
    ranks: tuple[int, ...] = ()
    check: str = ""

    def lines(self) -> list[str]:
        """For a terminal."""
        who = f"[{ranks_in_words(self.ranks)}] " if self.ranks else ""
        head = f"{self.level.upper() if self.level == 'failure' else self.level:9}{self.check:12}"
        lines = _wrapped(who + self.seen, head)
        if self.remedy:
            lines += _wrapped(self.remedy, f"{'':9}{'-> do':12}")
        return lines

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def ok(seen: str) -> Finding:
    """All is well."""
    return Finding("ok", seen)


def warning(seen: str, remedy: str, ranks: Sequence[int] = ()) -> Finding:
    """A run works, but slower or less safely."""
    return Finding("warning", seen, remedy, tuple(ranks))


def failure(seen: str, remedy: str, ranks: Sequence[int] = ()) -> Finding:
    """A run would fail, hang, or train something else."""
    return Finding("failure", seen, remedy, tuple(ranks))


def ranks_in_words(ranks: Sequence[int]) -> str:
    """ "rank 3", "ranks 0, 2": sixteen at most."""
    shown = ", ".join(map(str, ranks[:16])) + (", ..." if len(ranks) > 16 else "")
    return f"rank{'s' if len(ranks) > 1 else ''} {shown}"


def size(count: float) -> str:
    """Bytes for a person: "66 MB", "1.2 GB"."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            break
        count /= 1000
    return f"{count:.0f} {unit}" if count >= 10 or unit == "bytes" else f"{count:.1f} {unit}"


def _wrapped(text: str, head: str) -> list[str]:
    lines = textwrap.wrap(
        text, _WIDTH - _INDENT, break_long_words=False, break_on_hyphens=False
    ) or [""]
    return [head + lines[0], *(" " * _INDENT + line for line in lines[1:])]
