"""Copies of shards on a local disk: whole ones, and those of some ranges.

A copy of ranges is what a reader of a selection needs of a shard, and nothing of the other samples:

    word, R       16 bytes
    [R, 2] int64  offset and size of each range in the shard, rising and apart
    their bytes   one behind the other
"""

import hashlib
import logging
import struct
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from clipfast.storage.local import FileReader
from clipfast.storage.ranges import join

# Ranges with a gap of up to so many bytes between them are one request: image and caption of a
# sample lie 512 bytes apart, and a request takes longer than the bytes of the gap.
GAP = 64 << 10
# Of a copy: what lies between image and caption is a header and padding. It takes less room than
# it is worth to leave it out.
_GAP_OF_COPY = 1 << 10
# Ranges of one request of a copy end here, so that many are under way at a time.
_REQUEST = 1 << 20
# What is copied by ranges costs at most this share of what the whole costs.
_SHARE = 0.75

_HEAD = struct.Struct("<8sq")
_WORD = b"clippart"

_log = logging.getLogger(__name__)


class Part(NamedTuple):
    """What a copy of ranges is known by.

    Attributes:
        digest: 16 hexadecimal digits, equal for equal ranges.
        size: bytes of the copy.
    """

    digest: str
    size: int


class Ranges:
    """What is copied of a shard.

    Args:
        ranges: ``[N, 2]`` int64, offset and size, in any order; they may overlap.
    """

    def __init__(self, ranges: np.ndarray) -> None:
        self._table, _ = join(ranges[ranges[:, 1] > 0], _GAP_OF_COPY)

    @property
    def head(self) -> bytes:
        """What stands in front of the bytes."""
        return _HEAD.pack(_WORD, len(self._table)) + self._table.astype("<i8").tobytes()

    @property
    def part(self) -> Part:
        """What a copy of them is known by."""
        head = self.head
        return Part(_digest(head[_HEAD.size :]), len(head) + int(self._table[:, 1].sum()))

    def requests(self) -> list[list[tuple[int, int]]]:
        """The ranges, those together that one request reads."""
        found: list[list[tuple[int, int]]] = []
        first, stop = 0, -GAP - 1
        for offset, size in self._table.tolist():
            if offset - stop <= GAP and offset + size - first <= _REQUEST:
                found[-1].append((offset, size))
            else:
                found.append([(offset, size)])
                first = offset
            stop = offset + size
        return found

    def are_worth_it(self, whole: int) -> bool:
        """Whether they cost clearly less than the shard.

        A request counts as the bytes of the gap that it would have been worth to read over.

        Args:
            whole: bytes of the shard.
        """
        requests = self.requests()
        read = sum(each[-1][0] + each[-1][1] - each[0][0] for each in requests)
        return read + GAP * len(requests) <= _SHARE * whole


class Copy:
    """A copy that is read. Threads share it; it closes with its last reference.

    Args:
        file: it.
        table: which ranges of the shard it holds; None: all.
    """

    def __init__(self, file: FileReader, table: np.ndarray | None = None) -> None:
        self._file, self._table = file, table
        if table is not None:
            self._starts = _HEAD.size + table.size * 8 + np.cumsum(table[:, 1]) - table[:, 1]

    @classmethod
    def of_part(cls, file: FileReader, digest: str) -> "Copy | None":
        """A copy of ranges; None where it is none, or was cut.

        Args:
            file: it.
            digest: of its ranges.

        Raises:
            OSError: it cannot be read.
        """
        head = file.read_at(0, _HEAD.size)
        if len(head) < _HEAD.size:
            return None
        word, count = _HEAD.unpack(head)
        if word != _WORD or not 0 <= count <= file.size() // 16:
            return None
        data = file.read_at(_HEAD.size, 16 * count)
        if _digest(data) != digest:
            return None
        table = np.frombuffer(data, "<i8").reshape(-1, 2)
        expected = _HEAD.size + len(data) + int(table[:, 1].sum())
        return cls(file, table) if file.size() == expected else None

    def holds(self, ranges: Sequence[tuple[int, int]]) -> bool:
        """Whether ranges of the shard are here.

        Args:
            ranges: offset and size of each.
        """
        return self._table is None or None not in self._places(ranges)

    def read(self, ranges: Sequence[tuple[int, int]]) -> list[bytes] | None:
        """Ranges of the shard that are here.

        Args:
            ranges: offset and size of each.

        Returns:
            The bytes of each; None where the copy does not give them, for whatever reason.
        """
        try:
            found = [
                b"" if place is None else self._file.read_at(place, size)
                for place, (_, size) in zip(self._places(ranges), ranges, strict=True)
            ]
        except OSError as error:
            _log.warning("a cached shard cannot be read (%s); its store is asked", error)
            return None
        if any(len(data) != size for data, (_, size) in zip(found, ranges, strict=True)):
            return None
        return found

    def _places(self, ranges: Sequence[tuple[int, int]]) -> list[int | None]:
        """Where each range begins in the file; None where it is not there."""
        if self._table is None:
            return [offset for offset, _ in ranges]
        places: list[int | None] = []
        rows = np.searchsorted(self._table[:, 0], [offset for offset, _ in ranges], "right") - 1
        for row, (offset, size) in zip(rows.tolist(), ranges, strict=True):
            first, length = self._table[row].tolist() if row >= 0 else (0, 0)
            inside = offset - first
            if size == 0:
                places.append(0)
            elif row >= 0 and inside + size <= length:
                places.append(int(self._starts[row]) + inside)
            else:
                places.append(None)
        return places


def _digest(table: bytes) -> str:
    return hashlib.sha256(table).hexdigest()[:16]
