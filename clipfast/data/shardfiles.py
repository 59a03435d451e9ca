"""Open shards, few at a time, shared between threads."""

import threading
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, NamedTuple

from clipfast.arguments import whole_number
from clipfast.data.tarwalk import check_length, read_exactly
from clipfast.storage import Reader, Stat, storage_of


class Piece(NamedTuple):
    """Bytes of one shard.

    Attributes:
        shard: its position.
        offset: of the first byte.
        size: number of bytes.
    """

    shard: int
    offset: int
    size: int


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
        # Which version of a shard was opened first: one that comes in between is an error, where
        # the storage knows versions.
        self._versions: dict[int, Stat] = {}
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
        known = self._versions.get(shard_index)
        storage = storage_of(shard)
        file = storage.open(shard) if known is None else storage.open(shard, known)
        version = file.stat()
        with self._lock:
            file = self._files.setdefault(shard_index, file)
            if version is not None:
                self._versions.setdefault(shard_index, version)
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

    def read_many(self, pieces: Sequence[Piece]) -> list[bytes]:
        """Read many pieces; those of a store are asked for at once.

        Args:
            pieces: of any shards.

        Returns:
            The bytes of each, in the order asked for.

        Raises:
            ValueError: a shard ends before, or is another one than when it was opened.
        """
        by_shard: dict[int, list[int]] = {}
        for number, piece in enumerate(pieces):
            by_shard.setdefault(piece.shard, []).append(number)
        started = []
        for shard_index, numbers in by_shard.items():
            file = self._file(shard_index)
            ranges = [pieces[number][1:] for number in numbers]
            started.append((numbers, file.start_many(ranges)))
        found = [b""] * len(pieces)
        for numbers, wait in started:
            for number, data in zip(numbers, wait(), strict=True):
                shard_index, offset, size = pieces[number]
                check_length(data, offset, size, self.shards[shard_index])
                found[number] = data
        return found

    def hold(self, shard_index: int) -> None:
        """Open a shard, so that the version which is read later is the one that is there now."""
        self._file(shard_index)

    def version(self, shard_index: int) -> Stat:
        """Which version of a shard is read."""
        self.hold(shard_index)
        with self._lock:
            known = self._versions.get(shard_index)
        shard = self.shards[shard_index]
        return storage_of(shard).stat(shard) if known is None else known

    def close(self) -> None:
        """Forget all readers; those in use close when their read is done."""
        with self._lock:
            self._files.clear()
