"""Open shards, few at a time, shared between threads."""

import threading
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

from clipfast.arguments import whole_number
from clipfast.data.tarwalk import read_exactly
from clipfast.storage import Reader, storage_of


class ShardFiles:
    """Open shards, least recently used closed first; safe to share between threads and to pickle.

    Args:
        shards: paths, addressed by their position.
        max_open: readers kept; stay under the process limit (``ulimit -n``, often 1024).

    Raises:
        ValueError: `max_open` is below 1.
    """

    def __init__(self, shards: Sequence[str], max_open: int = 128) -> None:
        self.shards = list(shards)
        self.max_open = whole_number("max_open", max_open, 1)
        self._files: OrderedDict[int, Reader] = OrderedDict()
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        return (ShardFiles, (self.shards, self.max_open))

    def _file(self, shard_index: int) -> Reader:
        with self._lock:
            file = self._files.get(shard_index)
            if file is not None:
                self._files.move_to_end(shard_index)
                return file
        # Opened outside the lock: on a network file system it takes milliseconds.
        shard = self.shards[shard_index]
        file = storage_of(shard).open(shard)
        with self._lock:
            file = self._files.setdefault(shard_index, file)
            self._files.move_to_end(shard_index)
            # A reader closes with its last reference: a read under way in a thread goes on.
            while len(self._files) > self.max_open:
                self._files.popitem(last=False)
        return file

    def pread(self, shard_index: int, offset: int, size: int) -> bytes:
        """Read `size` bytes at `offset` of a shard.

        Raises:
            ValueError: the shard ends before, because it was cut or replaced after indexing.
        """
        file = self._file(shard_index)
        return read_exactly(file, offset, size, self.shards[shard_index])

    def close(self) -> None:
        """Forget all readers; those in use close when their read is done."""
        with self._lock:
            self._files.clear()
