"""Many ranges of one object in few calls, and one look at the object behind them.

A call of the client costs a processor more than the request that it makes: a thread is woken for
its start, for its head and for its bytes. A call that asks for several ranges is cheaper by half
per range. Its answers do not say which version they are of, so that the object is looked at once
all of them are there: a store that shows each write at once had no other one in between.

What goes wrong in any way is read again range by range, where each answer is compared.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from threading import Lock
from typing import Protocol

from clipfast.storage.base import Stat
from clipfast.storage.failures import PassingError
from clipfast.storage.pool import result_of, submit

# Requests that the client makes at a time in one call.
AT_A_TIME = 10
# Fewer are not worth the look.
_FEWEST = 3

Range = tuple[int, int]


class AsksForMany(Protocol):
    """A storage that has such a call."""

    def fetch(self, path: str, start: int, stop: int, stat: Stat) -> bytes:
        """See ``RemoteStorage.fetch``."""

    def fetch_unchecked(self, path: str, ranges: Sequence[Range]) -> Sequence[bytes]:
        """One attempt at many ranges of whatever version there is.

        Args:
            path: the object.
            ranges: (offset, size), within the object.

        Raises:
            PassingError: another attempt may do better.
            OSError: it may not.
        """

    def is_still(self, path: str, stat: Stat) -> bool:
        """Whether an object is what it was; no where it cannot be said.

        Args:
            path: the object.
            stat: what it was when it was opened.
        """


def is_worth_it(ranges: Sequence[Range]) -> bool:
    """Whether so many ranges are better asked for together."""
    return len(ranges) >= _FEWEST


class Together:
    """Ranges of one object on their way.

    Args:
        storage: where it is.
        path: the object.
        stat: what it was when it was opened.
        ranges: (offset, size), within the object and apart from each other.
        in_flight: requests that are under way at a time, over all objects.
    """

    def __init__(
        self, storage: AsksForMany, path: str, stat: Stat, ranges: Sequence[Range], in_flight: int
    ) -> None:
        self._storage, self._path, self._stat = storage, path, stat
        self._ranges, self._in_flight = ranges, in_flight
        self._lock = Lock()
        self._look: Future[bool] | None = None
        parts = [
            range(start, min(start + AT_A_TIME, len(ranges)))
            for start in range(0, len(ranges), AT_A_TIME)
        ]
        self._left = len(parts)
        threads = max(1, in_flight // AT_A_TIME)
        self._futures = [submit(threads, self._read, part, name="calls") for part in parts]

    def wait(self) -> list[bytes]:
        """The bytes of each range.

        Raises:
            ChangedError, OSError: see ``RemoteStorage.fetch``.
        """
        try:
            found = [data for future in self._futures for data in result_of(future)]
            is_same = self._look is not None and result_of(self._look)
        finally:
            for future in self._futures:
                future.cancel()
        wrong = [
            number
            for number, data in enumerate(found)
            if not is_same or data is None or len(data) != self._ranges[number][1]
        ]
        again = {number: self._again(*self._ranges[number]) for number in wrong}
        try:
            whole = dict(enumerate(found)) | {n: result_of(task) for n, task in again.items()}
        finally:
            for task in again.values():
                task.cancel()
        return [data for data in whole.values() if data is not None]

    def _read(self, part: range) -> Sequence[bytes | None]:
        """One call; the last that ends looks at the object."""
        found: Sequence[bytes | None] = [None] * len(part)
        # What fails is read again in `wait`, which says what is wrong.
        with suppress(PassingError, OSError):
            found = self._storage.fetch_unchecked(
                self._path, [self._ranges[number] for number in part]
            )
        with self._lock:
            self._left -= 1
            is_last = not self._left
        if is_last:
            # Not here: this thread has other calls to make.
            still = self._storage.is_still
            self._look = submit(self._in_flight, still, self._path, self._stat)
        return found

    def _again(self, offset: int, size: int) -> Future[bytes]:
        fetch: Callable[..., bytes] = self._storage.fetch
        return submit(self._in_flight, fetch, self._path, offset, offset + size, self._stat)
