"""Ask a store until it answers: back-off with full jitter, a bound, and a word in the log."""

import logging
import random
import time
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from threading import Event, Lock
from typing import TypeVar

from clipfast.storage import counting
from clipfast.storage.failures import PassingError, UnreachableError

T = TypeVar("T")

# Seconds: the first pause at most, and any pause at most.
_FIRST, _LONGEST = 0.2, 15.0
# When a wait is told first, and how often after that.
_TELL_AFTER, _TELL_EVERY = 5.0, 30.0

_log = logging.getLogger(__name__)
_lock = Lock()
_under_way = 0

# Set by whoever does not want the answer any more. Reads that wait for a store end then.
unwanted: ContextVar[Event | None] = ContextVar("unwanted", default=None)


def under_way() -> bool:
    """Whether some thread of this process waits for a store; it never does so for ever."""
    return _under_way > 0


@dataclass(frozen=True)
class Patience:
    """Calls again what failed in passing.

    Attempt n is followed by a pause that is drawn evenly from 0 to 0.2 x 2^n seconds, 15 at most,
    so that ranks that failed together do not come back together.

    Attributes:
        seconds: after which the next failure is the end.
        clock: seconds that pass.
        sleep: waits so many seconds; returns early, with true, where nobody wants the answer.
        draw: a number from 0 to 1.
    """

    seconds: float
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], bool] | None = None
    draw: Callable[[], float] = random.random

    def call(self, act: Callable[[], T], what: str) -> T:
        """What `act` returns, once it does.

        Args:
            act: one attempt.
            what: is asked for, for messages, such as "shard s3://b/0.tar, bytes 0 to 512".

        Raises:
            UnreachableError: it failed in passing for longer than `seconds`.
        """
        global _under_way
        with _lock:
            _under_way += 1
        try:
            with counting.waiting():
                return self._call(act, what)
        finally:
            with _lock:
                _under_way -= 1

    def _call(self, act: Callable[[], T], what: str) -> T:
        start = self.clock()
        told = start + _TELL_AFTER - _TELL_EVERY
        attempt = 0
        while True:
            try:
                return act()
            except PassingError as error:
                reason = str(error)
            attempt += 1
            waited = self.clock() - start
            if waited >= self.seconds:
                raise UnreachableError(
                    f"{what}: no answer after {attempt} attempts in {waited:.0f} s; the last: "
                    f"{reason}. See that the store is there, then pass --resume latest; "
                    "--data.store.patience waits longer"
                )
            if self.clock() - told >= _TELL_EVERY:
                told = self.clock()
                _log.warning(
                    "waiting for %s: %d s, %d attempts, the last: %s; it goes on when the store "
                    "answers, at most %d s",
                    what,
                    waited,
                    attempt,
                    reason,
                    self.seconds,
                )
            pause = self.draw() * min(_LONGEST, _FIRST * 2 ** min(attempt, 10))
            if (self.sleep or _sleep)(max(0.0, min(pause, self.seconds - waited))):
                raise UnreachableError(f"{what}: nobody waits for it any more")
            counting.add(retries=1)


def _sleep(seconds: float) -> bool:
    event = unwanted.get()
    if event is not None:
        return event.wait(seconds)
    time.sleep(seconds)
    return False
