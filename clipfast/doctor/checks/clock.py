"""Clocks of the nodes, against that of rank 0."""

import time
from collections.abc import Mapping

from clipfast.doctor.check import Check, Seen
from clipfast.doctor.finding import Finding, ok, warning
from clipfast.doctor.situation import Situation

_MOST_SECONDS = 2.0
_ANSWER_SECONDS = 5.0


def look(situation: Situation) -> Seen:
    """How far this clock is ahead: rank 0 is asked for its time, half the way there and back."""
    exchange = situation.exchange
    if exchange.is_main:
        for rank in exchange.ranks[1:]:
            if exchange.hear(f"time/asked/{rank}", _ANSWER_SECONDS) is not None:
                exchange.post(f"time/said/{rank}", time.time())
        return {"ahead": 0.0, "within": 0.0}
    asked = time.time()
    exchange.post(f"time/asked/{exchange.rank}", asked)
    said = exchange.hear(f"time/said/{exchange.rank}", _ANSWER_SECONDS * len(exchange.ranks))
    heard = time.time()
    assert said is not None, "rank 0 did not say its time"
    # It answers in its turn: only the last part of the way is known to be short.
    return {"ahead": heard - said, "within": heard - asked}


def judge(situation: Situation, seen: Mapping[int, Seen]) -> list[Finding]:
    """Clocks that differ by seconds."""
    off = [rank for rank, each in seen.items() if abs(each["ahead"]) > _MOST_SECONDS]
    if off:
        ahead = {rank: f"{seen[rank]['ahead']:+.1f} s" for rank in off}
        return [
            warning(
                f"clocks differ from rank 0's: {ahead}",
                "Logs of the nodes do not line up; set their clocks by NTP or chrony. Checkpoints "
                "are chosen by their steps, whatever clocks say",
                off,
            )
        ]
    most = max(abs(each["ahead"]) for each in seen.values())
    return [ok(f"within {most:.1f} s of rank 0's" if len(seen) > 1 else "one process, one clock")]


CLOCK = Check("clock", look, judge, limit=60, terms=lambda situation: {})
