"""A map from int64 to int64 in two flat arrays, looked up for many keys at a time."""

from __future__ import annotations

import numpy as np

# Fibonacci hashing: 2^64 over the golden ratio.
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
# Places per key: at a quarter full nearly all keys stand where they are looked for first.
_ROOM = 4


class HashedMap:
    """Open addressing: a key stands at its hash, or at the first free place behind it.

    Args:
        keys: [N] int64, different and not negative.
        values: [N] int64, not negative.
    """

    def __init__(self, keys: np.ndarray, values: np.ndarray) -> None:
        self._bits = max(4, int(np.ceil(np.log2(max(1, len(keys)) * _ROOM))))
        size = 1 << self._bits
        self._keys = np.full(size, -1, np.int64)
        self._values = np.full(size, -1, np.int64)
        self._mask = size - 1
        pending = np.arange(len(keys))
        at = self._hash(keys)
        self._longest = 0
        while len(pending):
            self._longest += 1
            free = self._keys[at] == -1
            self._keys[at[free]] = keys[pending[free]]
            # Of several that came to one place, the last was written.
            placed = self._keys[at] == keys[pending]
            self._values[at[placed]] = values[pending[placed]]
            pending, at = pending[~placed], (at[~placed] + 1) & self._mask

    def find(self, keys: np.ndarray) -> np.ndarray:
        """The values of some keys.

        Args:
            keys: [M] int64, not negative.

        Returns:
            [M] int64; -1 where a key is not there.
        """
        at = self._hash(keys)
        stored = self._keys[at]
        found = np.where(stored == keys, self._values[at], -1)
        live = np.flatnonzero((stored != keys) & (stored != -1))
        for _ in range(self._longest - 1):
            if not len(live):
                break
            at[live] = (at[live] + 1) & self._mask
            stored, wanted = self._keys[at[live]], keys[live]
            hit = live[stored == wanted]
            found[hit] = self._values[at[hit]]
            live = live[(stored != wanted) & (stored != -1)]
        return found

    def _hash(self, keys: np.ndarray) -> np.ndarray:
        hashed = keys.astype(np.uint64) * _MULTIPLIER
        return (hashed >> np.uint64(64 - self._bits)).astype(np.int64)
