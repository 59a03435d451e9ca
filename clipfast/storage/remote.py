"""Storages that take long to answer: many reads are under way at a time, copies lie in a cache.

What is common to object stores (`clipfast.storage.objects`) and to other places
(`clipfast.storage.elsewhere`). Every answer is of the version that was opened. What fails in
passing is asked for again (`clipfast.storage.patience`).
"""

import io
from abc import abstractmethod
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial

import numpy as np

from clipfast.storage import counting
from clipfast.storage.base import Reader, Stat, Storage, Stream
from clipfast.storage.cache import Cache
from clipfast.storage.copies import GAP, Copy
from clipfast.storage.options import StoreOptions
from clipfast.storage.patience import Patience
from clipfast.storage.pool import result_of, submit
from clipfast.storage.ranges import join
from clipfast.storage.together import Together, is_worth_it

# Bytes per request of a stream.
_STREAM_BLOCK = 8 << 20

# What `join` gives.
Joined = tuple[np.ndarray, np.ndarray]


class RemoteStorage(Storage):
    """What holds the objects of one scheme, far away.

    Args:
        scheme: of its paths.
        options: how stores are reached.
        cache: copies of shards on a disk of this machine.
    """

    is_remote = True

    @property
    def asks_for_many(self) -> bool:
        """Whether many ranges are read in one call, see `clipfast.storage.together`."""
        return False

    def __init__(
        self, scheme: str, options: StoreOptions | None = None, cache: Cache | None = None
    ) -> None:
        self.cache = cache
        self.scheme, self.options = scheme, options or StoreOptions()
        self._patience = Patience(self.options.patience)

    @abstractmethod
    def stat(self, path: str) -> Stat:
        """See `Storage.stat`."""

    @abstractmethod
    def _fetch(self, path: str, start: int, stop: int, stat: Stat) -> bytes:
        """One attempt at `fetch`.

        Raises:
            PassingError: another attempt may do better.
        """

    def fetch(self, path: str, start: int, stop: int, stat: Stat) -> bytes:
        """Bytes of an object that has not changed.

        Args:
            path: the object.
            start: first byte.
            stop: behind the last one; within the object.
            stat: what it was when it was opened.

        Raises:
            ChangedError: it is another one now.
            UnreachableError: the store does not answer for as long as the run waits.
        """
        what = f"shard {path}, bytes {start:,} to {stop:,}"
        return self._patience.call(partial(self._fetch, path, start, stop, stat), what)

    def fetch_unchecked(self, path: str, ranges: Sequence[tuple[int, int]]) -> Sequence[bytes]:
        """See `clipfast.storage.together`, for storages that ask for many."""
        raise NotImplementedError

    def is_still(self, path: str, stat: Stat) -> bool:
        """See `clipfast.storage.together`, for storages that ask for many."""
        raise NotImplementedError

    def require_answers(self, path: str) -> None:
        """Say so where this process cannot ask.

        Raises:
            RuntimeError: it was forked from one that did.
        """

    def size(self, path: str) -> int:
        """See `Storage.size`."""
        return self.stat(path).size

    def modified(self, path: str) -> int:
        """See `Storage.modified`."""
        return self.stat(path).modified

    def read_at(self, path: str, offset: int, size: int) -> bytes:
        """See `Storage.read_at`."""
        return self.open(path).read_at(offset, size)

    def open(self, path: str, stat: Stat | None = None) -> "RemoteReader":
        """See `Storage.open`.

        Args:
            path: the object.
            stat: what it was when it was opened before; None: what it is now.
        """
        return RemoteReader(self, path, stat or self.stat(path))

    def is_file(self, path: str) -> bool:
        """See `Storage.is_file`. A store that does not answer is an error, not a no."""
        try:
            self.stat(path)
        except FileNotFoundError:
            return False
        return True


class RemoteReader(Reader):
    """One object as it was when it was opened. Threads share it.

    Args:
        storage: where it is.
        path: the object.
        stat: what it is; each answer is compared with it.
    """

    def __init__(self, storage: RemoteStorage, path: str, stat: Stat) -> None:
        super().__init__(storage, path)
        self._store, self._stat = storage, stat
        self._copied: Copy | None = None

    def stat(self) -> Stat:
        """What was opened."""
        return self._stat

    def size(self) -> int:
        """See `Reader.size`."""
        return self._stat.size

    def read_at(self, offset: int, size: int) -> bytes:
        """See `Reader.read_at`.

        Raises:
            ChangedError: the object is not the one that was opened.
            UnreachableError: the store does not answer.
        """
        stop = min(offset + size, self._stat.size)
        if stop <= offset:
            return b""
        if (found := self._from_cache([(offset, stop - offset)])) is not None:
            return found[0]
        return self._store.fetch(self._path, offset, stop, self._stat)

    def start_many(self, ranges: Sequence[tuple[int, int]]) -> Callable[[], list[bytes]]:
        """See `Reader.start_many`. Neighbours are one request; all are under way at once."""
        stop = self._stat.size
        inside = [(at, max(0, min(size, stop - at))) for at, size in ranges]
        found = self._from_cache(inside)
        if self._store.cache is not None and not counting.fills():
            asked = sum(size for _, size in inside)
            counting.add(asked=asked, found=asked if found is not None else 0)
        if found is not None:
            copied = found
            return lambda: copied
        joined = join(np.array(ranges, np.int64).reshape(-1, 2), GAP)
        in_flight = self._store.options.in_flight
        self._store.require_answers(self._path)
        each = [(at, min(size, stop - at)) for at, size in joined[0].tolist()]
        if self._store.asks_for_many and is_worth_it(each) and all(size > 0 for _, size in each):
            many = Together(self._store, self._path, self._stat, each, in_flight)
            return lambda: _taken_apart(ranges, joined, many.wait())
        futures = [submit(in_flight, self.read_at, at, size) for at, size in each]
        return partial(_collect, ranges, joined, futures)

    def _from_cache(self, ranges: Sequence[tuple[int, int]]) -> list[bytes] | None:
        """Ranges of a copy in the cache; None where there is none that holds them all."""
        if self._store.cache is None or counting.fills():
            return None
        if self._copied is None or not self._copied.holds(ranges):
            found = self._store.cache.find(self._path, self._stat, ranges)
            if found is None:
                return None
            self._copied = found
        copied = self._copied
        found_bytes = copied.read(ranges)
        if found_bytes is None:
            self._copied = None
        return found_bytes

    def stream(self) -> io.BufferedReader:
        """See `Reader.stream`."""
        return io.BufferedReader(Stream(self), _STREAM_BLOCK)


def _collect(
    ranges: Sequence[tuple[int, int]], joined: Joined, futures: Sequence["Future[bytes]"]
) -> list[bytes]:
    try:
        return _taken_apart(ranges, joined, [result_of(future) for future in futures])
    finally:
        for future in futures:
            future.cancel()


def _taken_apart(
    ranges: Sequence[tuple[int, int]], joined: Joined, found: Sequence[bytes]
) -> list[bytes]:
    """What was asked for, of what was read."""
    starts, rows = joined[0][:, 0].tolist(), joined[1].tolist()
    return [
        found[row][offset - starts[row] : offset - starts[row] + size]
        for (offset, size), row in zip(ranges, rows, strict=True)
    ]
