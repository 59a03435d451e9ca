"""From the keys of samples to their captions."""

from __future__ import annotations

from typing import Any

import numpy as np

from clipfast.data.sidecar.arrow import arrow, parts
from clipfast.data.sidecar.rows import Rows
from clipfast.data.splitmix import mixed

_TRIES = 8


def digests(keys: Any, seed: int = 0) -> np.ndarray:
    """A number for each key, equal for equal ones.

    Args:
        keys: ``[N]`` large_binary of pyarrow.
        seed: another one gives other numbers.

    Returns:
        ``[N]`` uint64.
    """
    ends, data = parts(keys)
    starts, sizes = ends[:-1], np.diff(ends)
    # Words are read whole: the last one may reach beyond the end.
    padded = (
        np.concatenate([data[starts[0] : ends[-1]], np.zeros(8, np.uint8)]) if len(sizes) else data
    )
    words = np.ndarray((max(0, len(padded) - 7),), "<u8", padded, strides=(1,))
    state = mixed(sizes.astype(np.uint64) ^ mixed(np.full(len(sizes), seed, np.uint64)))
    for place in range(0, int(sizes.max(initial=0)), 8):
        here = np.flatnonzero(sizes > place)
        word = words[starts[here] - starts[0] + place]
        spare = np.maximum(0, place + 8 - sizes[here]).astype(np.uint64) * np.uint64(8)
        word &= np.uint64(2**64 - 1) >> spare
        state[here] = mixed(state[here] ^ word)
    return state


class Lookup:
    """Captions by key.

    Args:
        rows: of one or several tables. Rows of one key are captions of one sample.

    Attributes:
        rows: as given.
    """

    def __init__(self, rows: Rows) -> None:
        self.rows = rows
        self._seed, numbers, order = _distinct(rows.keys)
        again = np.append(np.zeros(min(1, len(order)), bool), np.diff(numbers[order]) == 0)
        self._numbers = numbers[order][~again]
        self._first = order[~again]
        group = np.empty(len(order), np.int64)
        group[order] = np.cumsum(~again) - 1
        # Captions by key, and of one key in the order of the table.
        of_caption = group[rows.row]
        self._captions = np.argsort(of_caption, kind="stable")
        counts = np.bincount(of_caption, minlength=len(self._first))
        self._starts = np.append(0, np.cumsum(counts))

    def __len__(self) -> int:
        """Different keys."""
        return len(self._first)

    def find(self, keys: Any) -> np.ndarray:
        """``[N]`` int64: places of keys, -1 where there is no row of one.

        Args:
            keys: ``[N]`` large_binary.
        """
        pa = arrow()
        if not len(self) or not len(keys):
            return np.full(len(keys), -1, np.int64)
        numbers = digests(keys, self._seed)
        place = np.minimum(np.searchsorted(self._numbers, numbers), len(self) - 1)
        maybe = np.flatnonzero(self._numbers[place] == numbers)
        # Keys themselves are compared: two may have one number.
        there = self.rows.keys.take(pa.array(self._first[place[maybe]]))
        same = pa.compute.equal(there, keys.take(pa.array(maybe))).to_numpy(zero_copy_only=False)
        found = np.full(len(keys), -1, np.int64)
        found[maybe[same]] = place[maybe[same]]
        return found

    def captions(self, places: np.ndarray) -> tuple[np.ndarray, Any]:
        """How many captions each of some keys has, and all of them.

        Args:
            places: ``[N]`` of ``find``; -1 has none.

        Returns:
            ``[N]`` int64, and the texts one behind the other, large_string.
        """
        first = self._starts[places]
        counts = np.where(places < 0, 0, self._starts[places + 1] - first)
        before = np.cumsum(counts) - counts
        inside = np.arange(int(counts.sum())) - np.repeat(before, counts)
        chosen = self._captions[np.repeat(first, counts) + inside]
        return counts, self.rows.texts.take(arrow().array(chosen))

    def key(self, place: int) -> str:
        """A key, for messages."""
        return bytes(self.rows.keys[int(self._first[place])].as_py()).decode("utf-8", "replace")


def _distinct(keys: Any) -> tuple[int, np.ndarray, np.ndarray]:
    """A seed under which different keys have different numbers; these, and their order."""
    pa = arrow()
    for seed in range(_TRIES):
        numbers = digests(keys, seed)
        order = np.argsort(numbers, kind="stable")
        again = np.flatnonzero(np.diff(numbers[order]) == 0)
        one, other = (keys.take(pa.array(order[again + i])) for i in (0, 1))
        if pa.compute.all(pa.compute.equal(one, other), min_count=0).as_py():
            return seed, numbers, order
    raise AssertionError("64 bits tell no keys apart")
