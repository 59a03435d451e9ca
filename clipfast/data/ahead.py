"""Fetches the shards of the next batches into a cache, in the order of their first use.

The order of samples is known, so the shards are. A batch never waits for the cache: what is not
there yet is read from its store by range. Where little of a shard is read in any epoch, its ranges
are fetched instead of the whole.
"""

import contextvars
import logging
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Event, Thread
from typing import NamedTuple

import numpy as np

from clipfast.storage import Cache, Stat, storage_of
from clipfast.storage.cache import Wanted
from clipfast.storage.copies import Part, Ranges
from clipfast.storage.patience import unwanted

# Batches that are looked at beyond the one that is read, at most, and seconds between two looks.
_MOST_AHEAD, _SECONDS = 4096, 0.2
# Shards that are looked at together.
_AT_ONCE = 16

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
        version: which version of a shard is read; None: the one that is there.
        ranges: what is read of a shard, in any epoch: ``[N, 2]`` int64, offset and size. None: all.
    """

    def __init__(
        self,
        cache: Cache,
        shards: Sequence[str],
        batches: Iterator[tuple[int, np.ndarray]],
        position: Callable[[], int],
        name: str = "train",
        *,
        version: Callable[[int], Stat] | None = None,
        ranges: Callable[[int], np.ndarray] | None = None,
    ) -> None:
        self._cache, self._shards, self._name = cache, shards, name
        self._batches, self._position = batches, position
        self._version, self._ranges = version or self._present, ranges
        self._far = {i for i, path in enumerate(shards) if storage_of(path).is_remote}
        self._ahead: deque[_Batch] = deque()
        self._wanted: deque[int] = deque()
        # Of shards that were looked at: the version, and the ranges where they are worth it.
        self._known: dict[int, tuple[Stat, Part | None]] = {}
        # What has a place in the cache, or will have: bytes, and how many batches ahead need it.
        self._placed: dict[int, Wanted] = {}
        self._used = 0
        # Whether that is another than what was said to the cache.
        self._is_new = True
        self._needed: Counter[int] = Counter()
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
            for shard in self._ahead.popleft().shards:
                self._needed[shard] -= 1
                if not self._needed[shard]:
                    del self._needed[shard]
                    self._used -= self._placed.pop(shard).size
                    self._is_new = True
            self._is_full = False

    def _look_ahead(self) -> None:
        while not self._wanted and not self._is_full and len(self._ahead) < _MOST_AHEAD:
            # Where all have a place, further batches have nothing to say.
            if len(self._placed) == len(self._far) and self._ahead:
                break
            batch = next(self._batches, None)
            if batch is None:
                break
            number, shards = batch[0], self._far.intersection(batch[1].tolist())
            self._place(shards - self._placed.keys())
            kept = frozenset(shards & self._placed.keys())
            self._needed.update(kept)
            self._ahead.append(_Batch(number, kept))
        if self._is_new:
            self._cache.pin(self._name, self._placed.values())
            self._is_new = False

    def _place(self, new: set[int]) -> None:
        """Give shards a place while there is room, and fetch them."""
        self._meet(new)
        copies = {shard: self._copy(shard) for shard in new}
        # Those that are there first, so that a small cache holds on to what it has.
        for shard in sorted(new, key=lambda each: (not self._cache.has(copies[each]), each)):
            size = copies[shard].size
            if self._used + size > self._cache.capacity:
                self._is_full = True
                continue
            self._placed[shard] = copies[shard]
            self._used += size
            self._is_new = True
            self._wanted.append(shard)

    def _fetch_one(self) -> bool:
        """Whether there may be more to do at once."""
        if not self._wanted:
            return False
        shard = self._wanted.popleft()
        wanted = self._placed.get(shard)
        # Its batches may be over.
        if wanted is None:
            return True
        if self._cache.has(wanted):
            return True
        path, stat, part = wanted
        ranges = None if part is None or self._ranges is None else Ranges(self._ranges(shard))
        with storage_of(path).open(path, stat) as reader:
            if self._cache.fetch(path, stat, reader, ranges):
                return True
        # Another rank is at it, or others need the room: again after the rest.
        if shard in self._placed:
            self._wanted.append(shard)
        return False

    def _copy(self, shard: int) -> Wanted:
        """The copy that serves best: the whole where it is there or costs no more."""
        path, (stat, part) = self._shards[shard], self._known[shard]
        whole, ranges = Wanted(path, stat), Wanted(path, stat, part)
        return whole if self._cache.has(whole) else ranges

    def _meet(self, shards: Iterable[int]) -> None:
        """Look at shards that are not known yet, many at a time."""
        new = [shard for shard in shards if shard not in self._known]
        if not new:
            return
        with ThreadPoolExecutor(min(len(new), _AT_ONCE)) as pool:
            look = self._look_at
            tasks = [pool.submit(contextvars.copy_context().run, look, shard) for shard in new]
            for shard, task in zip(new, tasks, strict=True):
                self._known[shard] = task.result()

    def _look_at(self, shard: int) -> tuple[Stat, Part | None]:
        if self._closed.is_set():
            raise InterruptedError("nobody waits for this shard any more")
        stat = self._version(shard)
        if self._ranges is None:
            return stat, None
        ranges = Ranges(self._ranges(shard))
        if not ranges.are_worth_it(stat.size):
            return stat, None
        self._cache.expect(Wanted(self._shards[shard], stat, ranges.part))
        return stat, ranges.part

    def _present(self, shard: int) -> Stat:
        return storage_of(self._shards[shard]).stat(self._shards[shard])
