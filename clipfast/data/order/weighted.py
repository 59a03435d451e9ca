"""The order of shards whose samples have weights: epochs of one length, with copies."""

from collections.abc import Sequence

import numpy as np

from clipfast.data.order.copies import Copies
from clipfast.data.order.epoch import EpochOrder
from clipfast.data.order.refs import SampleRefs


class WeightedOrder(EpochOrder):
    """Random access into shuffled epochs that have a sample as often as its weight says.

    An epoch is shuffled as one of ``EpochOrder`` is, with the copies of a shard in its place
    (``clipfast.data.order.copies``).

    Args:
        counts: see ``EpochOrder``, as the others.
        units: ``[N]`` uint32 of each shard, weights as ``clipfast.data.order.copies.units_of``
            gives them; None: each sample once.
        seed: of permutations, and of which sample has a copy more in which epoch.
        window: copies permuted together.
        shuffle: False reads as the shards lie, copies side by side.

    Raises:
        TypeError: an argument is of another kind; a ``ValueError`` too.
        ValueError: an argument is out of its range.
    """

    def __init__(
        self,
        counts: np.ndarray,
        units: Sequence[np.ndarray | None],
        seed: int = 0,
        window: int = 1 << 18,
        shuffle: bool = True,
    ) -> None:
        super().__init__(counts, seed, window, shuffle)
        for count, own in zip(self.counts.tolist(), units, strict=True):
            if own is not None and len(own) != count:
                raise ValueError(f"{len(own):,} weights of a shard of {count:,} samples")
        self._copies = Copies(self.counts, units, self.seed)

    def __len__(self) -> int:
        """Positions of an epoch."""
        return self._copies.total

    def at(self, epoch: int, positions: np.ndarray) -> SampleRefs:
        """The samples at any positions of an epoch; see ``Order``."""
        found = super().at(epoch, positions)
        row = found.row
        for shard in np.unique(found.shard).tolist():
            here = found.shard == shard
            row[here] = self._copies.rows(epoch, shard)[row[here]]
        return SampleRefs(found.shard, row)

    def places(self, epoch: int, samples: SampleRefs) -> np.ndarray:
        """All positions of an epoch at which one of some samples stands; see ``Order``."""
        shards, slots = [], []
        for shard, row in zip(samples.shard.tolist(), samples.row.tolist(), strict=True):
            rows = self._copies.rows(epoch, shard)
            first, stop = np.searchsorted(rows, (row, row + 1))
            slots.append(np.arange(first, stop))
            shards.append(np.full(stop - first, shard, np.int64))
        if not slots:
            return np.empty(0, np.int64)
        copies = SampleRefs(np.concatenate(shards), np.concatenate(slots))
        return np.sort(super().positions(epoch, copies))

    def _counts_of(self, epoch: int) -> np.ndarray:
        return self._copies.counts(epoch)
