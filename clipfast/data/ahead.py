"""Fetches the shards of the next batches into a cache, in the order of their first use.

The order of samples is known, so the shards are. A batch never waits for the cache: what is not
there yet is read from its store by range.
"""

import logging
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from threading import Event, Thread
from typing import NamedTuple

import numpy as np

from clipfast.storage import Cache, Stat, storage_of
from clipfast.storage.patience import unwanted

# Batches that are looked at beyond the one that is read, at most, and seconds between two looks.
_MOST_AHEAD, _SECONDS = 4096, 0.2

_log = logging.getLogger(__name__)


class _Batch(NamedTuple):
    """Shards that a batch needs and that have a place in the cache."""

    number: int
    shards: frozenset[int]


class Ahead:
    """A thread that fetches shards, until it is closed.

    Args:
        cache: where they go.
        shards: paths.
        batches: number of each batch, from the present one on, and the shards it reads.
        position: number of the next batch that is handed out.
        name: of whoever reads, within this process.
    """

    def __init__(
        self,
        cache: Cache,
        shards: Sequence[str],
        batches: Iterator[tuple[int, np.ndarray]],
        position: Callable[[], int],
        name: str = "train",
    ) -> None:
        self._cache, self._shards, self._name = cache, shards, name
        self._batches, self._position = batches, position
        self._far = {i for i, path in enumerate(shards) if storage_of(path).is_remote}
        self._ahead: deque[_Batch] = deque()
        self._wanted: deque[int] = deque()
        self._stats: dict[int, Stat] = {}
        # Something had no place: nothing further is looked at before a batch is over.
        self._is_full = False
        self._told = False
        self._closed = Event()
        self._thread = Thread(target=self._run, name="clipfast-ahead", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the thread; what it is fetching is dropped."""
        self._closed.set()
        self._thread.join()
        self._cache.unpin(self._name)

    def _run(self) -> None:
        unwanted.set(self._closed)
        while not self._closed.is_set():
            try:
                self._drop_past()
                self._look_ahead()
                if not self._fetch_one():
                    self._closed.wait(_SECONDS)
            except (OSError, ValueError) as error:
                # The run reads from the store meanwhile, and says what is wrong with that itself.
                if not self._told and not self._closed.is_set():
                    self._told = True
                    _log.warning("--data.cache: %s; shards are read from their store", error)
                self._closed.wait(1.0)

    def _drop_past(self) -> None:
        now = self._position()
        while self._ahead and self._ahead[0].number < now:
            self._ahead.popleft()
            self._is_full = False

    def _look_ahead(self) -> None:
        if self._wanted or self._is_full or len(self._ahead) >= _MOST_AHEAD:
            return
        placed = {shard for batch in self._ahead for shard in batch.shards}
        used = sum(self._stats[shard].size for shard in placed)
        while not self._wanted and not self._is_full and len(self._ahead) < _MOST_AHEAD:
            batch = next(self._batches, None)
            if batch is None:
                break
            number, shards, kept = batch[0], self._far.intersection(batch[1].tolist()), set()
            # Those that are there first, so that a small cache holds on to what it has.
            for shard in sorted(shards, key=lambda each: (not self._has(each), each)):
                if shard not in placed:
                    size = self._stat(shard).size
                    if used + size > self._cache.capacity:
                        self._is_full = True
                        continue
                    placed.add(shard)
                    used += size
                    self._wanted.append(shard)
                kept.add(shard)
            self._ahead.append(_Batch(number, frozenset(kept)))
        self._cache.pin(self._name, [(self._shards[i], self._stats[i]) for i in placed])

    def _fetch_one(self) -> bool:
        """Whether there may be more to do at once."""
        if not self._wanted:
            return False
        shard = self._wanted.popleft()
        path, stat = self._shards[shard], self._stats[shard]
        if self._cache.has(path, stat):
            return True
        with storage_of(path).open(path, stat) as reader:
            if self._cache.fetch(path, stat, reader):
                return True
        # Another rank is at it, or others need the room: again after the rest.
        if any(shard in batch.shards for batch in self._ahead):
            self._wanted.append(shard)
        return False

    def _stat(self, shard: int) -> Stat:
        if shard not in self._stats:
            path = self._shards[shard]
            self._stats[shard] = storage_of(path).stat(path)
        return self._stats[shard]

    def _has(self, shard: int) -> bool:
        return self._cache.has(self._shards[shard], self._stat(shard))
