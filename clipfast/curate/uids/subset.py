"""DataComp's files of uids: sorted numbers of 128 bits, as numpy saves them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

# A uid is 32 hexadecimal digits; a file has it as two numbers of 64 bits, the upper half first.
DTYPE = np.dtype([("f0", "<u8"), ("f1", "<u8")])
DIGITS = 32
_HEX = frozenset("0123456789abcdef")
# Uids of a file that are in memory while their order is looked at: 64 MiB.
_CHUNK = 4 << 20


def halves(uid: str) -> tuple[int, int] | None:
    """The two numbers of a uid; None where it is none.

    Args:
        uid: 32 hexadecimal digits, of any case.
    """
    uid = uid.strip().lower()
    if len(uid) != DIGITS or not _HEX.issuperset(uid):
        return None
    return int(uid[:16], 16), int(uid[16:], 16)


class Subset:
    """The uids of a file, which stays on the disk.

    Args:
        path: of the file, on this machine.
        name: of it, for messages.

    Raises:
        ValueError: it is no file of sorted uids.
        OSError: it cannot be read.
    """

    def __init__(self, path: str, name: str) -> None:
        try:
            found: Any = np.load(path, mmap_mode="r", allow_pickle=False)
        except (ValueError, EOFError) as error:
            raise ValueError(f"{name} is no file that numpy.save has written: {error}") from None
        if (
            not isinstance(found, np.ndarray)
            or found.ndim != 1
            or [each.newbyteorder("<") for each, *_ in (found.dtype.fields or {}).values()]
            != [np.dtype("<u8")] * 2
            or found.dtype.itemsize != DTYPE.itemsize
        ):
            raise ValueError(
                f"{name} has no uids: expected a list of the type 'u8,u8', as DataComp publishes "
                f"them, got {getattr(found, 'dtype', type(found).__name__)}"
            )
        self._high, self._low = (found[field] for field in found.dtype.names or ())
        self._require_order(name)

    def __len__(self) -> int:
        return len(self._high)

    def holds(self, high: np.ndarray, low: np.ndarray) -> np.ndarray:
        """Which uids are in the file, by halving it 31 times where it has a billion.

        Args:
            high: [N] uint64, the first halves.
            low: [N] uint64, the second ones.

        Returns:
            [N] bool.
        """
        if not len(self):
            return np.zeros(len(high), bool)
        # The first place of the file that is not below the uid lies in [start, stop].
        start = np.zeros(len(high), np.int64)
        stop = np.full(len(high), len(self), np.int64)
        while (start < stop).any():
            middle = np.minimum((start + stop) // 2, len(self) - 1)
            above, below = self._high[middle], self._low[middle]
            is_less = (start < stop) & ((above < high) | ((above == high) & (below < low)))
            start = np.where(is_less, middle + 1, start)
            stop = np.where(is_less, stop, np.minimum(stop, middle))
        place = np.minimum(start, len(self) - 1)
        found: np.ndarray = (self._high[place] == high) & (self._low[place] == low)
        return found

    def _require_order(self, name: str) -> None:
        for first, high, low in self._chunks():
            falls = (high[1:] < high[:-1]) | ((high[1:] == high[:-1]) & (low[1:] < low[:-1]))
            if falls.any():
                raise ValueError(
                    f"{name} is not sorted, from uid {first + int(falls.argmax()) + 1:,} on: "
                    "numpy.save(FILE, numpy.sort(numpy.load(FILE))) sorts it"
                )

    def _chunks(self) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """Pieces that share an element with the one before."""
        for first in range(0, len(self), _CHUNK):
            piece = slice(first, first + _CHUNK + 1)
            yield first, np.asarray(self._high[piece]), np.asarray(self._low[piece])
