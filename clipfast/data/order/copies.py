"""How often an epoch has each sample, where a selection gives weights.

A weight w is the number of times that an epoch has a sample, in the mean. Its whole part stands in
each epoch. Of the fractions an epoch has K copies in all, K the sum of all fractions, rounded up:
so all epochs are equally long. The j-th copy of a fraction f is due when t f + o passes j, t in
epochs, o a number in [0, 1) of the sample's own. Copies are given in the order in which they are
due, K in each epoch. A sample of 2.5 so has two and three copies in turn, and one of 0.5 a copy in
every other epoch, but for a shift now and then.

It is done in two steps of the same kind, shards first and then the samples of each. So a shard's
copies are found without looking at those of others, for any epoch. All arithmetic is in whole
numbers.
"""

from collections import OrderedDict
from collections.abc import Sequence

import numpy as np

from clipfast.data.splitmix import mixed

# Weights are multiples of 1 / UNIT.
UNIT = 1 << 16
# Steps of time in an epoch.
_TICKS = 1 << 12
_KEPT = 512


def units_of(weights: np.ndarray) -> np.ndarray:
    """Weights as whole multiples of ``1 / UNIT``.

    Args:
        weights: ``[N]`` float, from ``1 / UNIT`` to 65,535.

    Returns:
        ``[N]`` uint32.
    """
    return np.rint(weights.astype(np.float64) * UNIT).astype(np.uint32)


def given(fractions: np.ndarray, offsets: np.ndarray, copies: int) -> np.ndarray:
    """How often each of some samples was given, when so many copies were given in all.

    Args:
        fractions: ``[N]`` int64, f in units, below ``UNIT``.
        offsets: ``[N]`` int64, o in units, below ``UNIT``.
        copies: in all; 0 where all fractions are.

    Returns:
        ``[N]`` int64; their sum is `copies`, and none falls when that rises.
    """
    if not copies:
        return np.zeros(len(fractions), np.int64)

    def due(time: int) -> np.ndarray:
        return (time * fractions + offsets * _TICKS) // (UNIT * _TICKS)

    low, high = 0, 1
    while int(due(high).sum()) <= copies:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if int(due(middle).sum()) <= copies else (low, middle)
    found = due(low)
    rest = copies - int(found.sum())
    if rest:
        # Of those that are due at the same time, one after the other.
        following = np.flatnonzero(due(high) > found)
        order = np.lexsort((following, offsets[following]))
        found[following[order[:rest]]] += 1
    return found


class Copies:
    """Which samples of which shards an epoch has, each as often as its weight says.

    Args:
        counts: ``[S]`` int64, samples of each shard.
        units: ``[N]`` uint32 of each shard, see ``units_of``; None: each sample has the weight 1.
        seed: of the offsets.
    """

    def __init__(self, counts: np.ndarray, units: Sequence[np.ndarray | None], seed: int) -> None:
        self._counts, self._units = counts, units
        state = mixed(np.array([seed], np.uint64))
        self._seeds = mixed(state ^ np.arange(len(counts), dtype=np.uint64))
        fractions = np.zeros(len(counts), np.int64)
        self._whole = counts.astype(np.int64)
        for shard, own in enumerate(units):
            if own is not None:
                self._whole[shard] = int((own // UNIT).astype(np.int64).sum())
                fractions[shard] = int((own % UNIT).astype(np.int64).sum())
        # Of the fractions of a shard, what each epoch has of it, and what it has now and then.
        self._each, self._some = np.divmod(fractions, UNIT)
        self._offsets = (mixed(self._seeds) % np.uint64(UNIT)).astype(np.int64)
        self._extra = -(-int(self._some.sum()) // UNIT)
        self.total = int(self._whole.sum() + self._each.sum()) + self._extra
        self._rows: OrderedDict[tuple[int, int], np.ndarray] = OrderedDict()
        self._before: OrderedDict[int, np.ndarray] = OrderedDict()

    def counts(self, epoch: int) -> np.ndarray:
        """``[S]`` int64: copies of each shard in an epoch; their sum is ``total``."""
        return self._whole + self._fractional(epoch + 1) - self._fractional(epoch)

    def rows(self, epoch: int, shard: int) -> np.ndarray:
        """Rows of a shard that an epoch has, rising, each as often as it has it.

        Args:
            epoch: from 0.
            shard: which.
        """
        key = epoch, shard
        if key not in self._rows:
            self._rows[key] = self._made(epoch, shard)
            while len(self._rows) > _KEPT:
                self._rows.popitem(last=False)
        self._rows.move_to_end(key)
        return self._rows[key]

    def _made(self, epoch: int, shard: int) -> np.ndarray:
        units = self._units[shard]
        rows = np.arange(int(self._counts[shard]))
        if units is None:
            return rows
        fractions = (units % UNIT).astype(np.int64)
        offsets = mixed(mixed(self._seeds[shard] ^ rows.astype(np.uint64))) % np.uint64(UNIT)
        before, after = (
            given(fractions, offsets.astype(np.int64), int(self._fractional(each)[shard]))
            for each in (epoch, epoch + 1)
        )
        return np.repeat(rows, (units // UNIT).astype(np.int64) + after - before)

    def _fractional(self, epoch: int) -> np.ndarray:
        """``[S]`` int64: copies of each shard's fractions in all epochs before one."""
        if epoch not in self._before:
            some = given(self._some, self._offsets, epoch * self._extra)
            self._before[epoch] = epoch * self._each + some
            while len(self._before) > 4:
                self._before.popitem(last=False)
        self._before.move_to_end(epoch)
        return self._before[epoch]
