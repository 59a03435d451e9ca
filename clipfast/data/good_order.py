"""The order of an epoch with its broken samples left out: still a pure function of the data.

A place of the global batch has a sequence of its own in each epoch: place p of B takes the samples
at positions p, p + B, p + 2B, and so on. Batch k takes the k-th good sample of each sequence, and
begins again where a sequence ends. So

- a rank looks at its own places alone, and any number of ranks makes the same batches;
- a batch holds no sample twice;
- a good sample is seen once per epoch, but for those that fill the end;
- knowing earlier which samples are broken changes nothing, so that a run resumes exactly.
"""

from bisect import insort
from collections import OrderedDict

import numpy as np

from clipfast.data.order import Order, SampleRefs

# Reading ahead passes through several epochs of a small set.
_KEPT_EPOCHS = 8


# Place of the batch -> numbers of the broken samples in its sequence, sorted.
_Holes = dict[int, list[int]]


class GoodOrder:
    """Global batches of an order, made of what is not known to be broken.

    Args:
        order: of all samples.
        batch_size: B, the global batch.
    """

    def __init__(self, order: Order, batch_size: int) -> None:
        self._order = order
        self._batch_size = batch_size
        self._broken: set[tuple[int, int]] = set()
        self._holes: OrderedDict[int, _Holes] = OrderedDict()

    @property
    def known(self) -> int:
        """Number of samples that are known to be broken."""
        return len(self._broken)

    def leave_out(self, shard: int, row: int) -> None:
        """Take a sample for broken from now on.

        Args:
            shard: its shard.
            row: its row in that shard.
        """
        if (shard, row) in self._broken:
            return
        self._broken.add((shard, row))
        sample = SampleRefs(np.array([shard]), np.array([row]))
        for epoch, holes in self._holes.items():
            for position in self._order.places(epoch, sample).tolist():
                turn, place = divmod(position, self._batch_size)
                insort(holes.setdefault(place, []), turn)

    def samples(self, epoch: int, index: int, first: int, stop: int) -> SampleRefs:
        """The samples at some places of a global batch.

        Args:
            epoch: from 0.
            index: k, the batch's number in its epoch.
            first: the first place, at least 0.
            stop: the end, at most B.

        Returns:
            References, one per place.

        Raises:
            ValueError: too few samples are good.
        """
        start = index * self._batch_size
        positions = np.arange(start + first, start + stop, dtype=np.int64)
        holes = self._holes_of(epoch)
        for place in holes:
            if first <= place < stop:
                positions[place - first] = self._position(holes, index, place)
        return self._order.at(epoch, positions)

    def _holes_of(self, epoch: int) -> _Holes:
        if not self._broken:
            return {}
        if epoch not in self._holes:
            samples = np.array(sorted(self._broken), np.int64)
            positions = self._order.places(epoch, SampleRefs(samples[:, 0], samples[:, 1]))
            holes: _Holes = {}
            for position in positions.tolist():
                turn, place = divmod(position, self._batch_size)
                holes.setdefault(place, []).append(turn)
            self._holes[epoch] = holes
            while len(self._holes) > _KEPT_EPOCHS:
                self._holes.popitem(last=False)
        self._holes.move_to_end(epoch)
        return self._holes[epoch]

    def _position(self, holes: _Holes, index: int, place: int) -> int:
        """The position of the k-th good sample of a place's sequence."""
        broken = holes[place]
        good = len(range(place, len(self._order), self._batch_size)) - len(broken)
        if not good:
            return self._elsewhere(holes, index, place)
        turn = index % good
        for hole in broken:
            if hole > turn:
                break
            turn += 1
        return place + turn * self._batch_size

    def _elsewhere(self, holes: _Holes, index: int, place: int) -> int:
        """Where a whole sequence is broken, as few small ones are: the next good sample of the
        order that is not in this batch."""
        size, total = self._batch_size, len(self._order)
        broken = {each + turn * size for each, turns in holes.items() for turn in turns}
        taken = range(index * size, (index + 1) * size)
        for distance in range(size, total + size):
            position = (index * size + place + distance) % total
            if position not in taken and position not in broken:
                return position
        raise ValueError(
            f"no sample is left to stand in for a broken one: {self.known:,} of {total:,} are "
            f"broken, and a batch has {size:,}. Mend the data, or pass a smaller batch size"
        )
