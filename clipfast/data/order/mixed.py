"""Epochs that are mixed of several sources in exact shares; random access as into one.

Source i gives m_i of the N samples of an epoch. It is one endless line: its own ``EpochOrder``
shuffles it anew in each pass, and passes follow each other without a gap. Epoch e takes places
e m_i to (e + 1) m_i of that line. So over the epochs from the first on, each sample of a source is
seen as often as every other, or once more; where samples have weights, as often as its weight says
in so many passes.

The epoch is cut into windows. A window takes of each source what is due (``shares``), and permutes
which position is whose.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from clipfast.arguments import truth, whole_number
from clipfast.data.order.epoch import MOST_SEED, EpochOrder
from clipfast.data.order.refs import SampleRefs, check_positions, crops_of
from clipfast.data.order.shares import Share, taken
from clipfast.data.order.weighted import WeightedOrder

_SOURCES = 3  # keeps this permutation apart from those of EpochOrder
_KEPT_WINDOWS = 3


@dataclass(frozen=True)
class _Window:
    """Whose the positions of one window are.

    Attributes:
        source: ``[W]`` int64, source of each position.
        turn: ``[W]`` int64, how many positions of the same source are in front of it.
        before: ``[I]`` int64, samples of each source in the windows before.
        back: per source, its positions in this window, rising.
    """

    source: np.ndarray
    turn: np.ndarray
    before: np.ndarray
    back: list[np.ndarray]


class MixedOrder:
    """Random access into mixed epochs.

    Args:
        shares: of the sources; shards are numbered through them in this order.
        seed: of all permutations.
        window: positions permuted together; a source's own window is its share of it.
        shuffle: False mixes evenly, and reads each source as it lies.

    Raises:
        TypeError: an argument is of another kind; a ``ValueError`` too.
        ValueError: an argument is out of its range, or a source has no sample or gives none.
    """

    def __init__(
        self,
        shares: Sequence[Share],
        seed: int = 0,
        window: int = 1 << 18,
        shuffle: bool = True,
    ) -> None:
        self.seed = whole_number("seed", seed, 0, MOST_SEED)
        self.window = whole_number("window", window, 1, why="samples shuffled together")
        self.shuffle = truth("shuffle", shuffle)
        self.shares = list(shares)
        self._samples = [
            whole_number(f"samples of source {share.name!r}", share.samples, 1)
            for share in self.shares
        ]
        if not self.shares:
            raise ValueError("expected at least one source to mix")
        self._total = sum(self._samples)
        self._sources = [self._order_of(share) for share in self.shares]
        self.counts = np.concatenate([source.counts for source in self._sources])
        self._sizes = np.array([len(source) for source in self._sources], np.int64)
        for share, size in zip(self.shares, self._sizes.tolist(), strict=True):
            if not size:
                raise ValueError(f"source {share.name!r} holds no sample")
        # The first shard of each source.
        shards = [len(source.counts) for source in self._sources]
        self._first = np.concatenate([[0], np.cumsum(shards)[:-1]]).astype(np.int64)
        self._windows: OrderedDict[tuple[int, int], _Window] = OrderedDict()

    def __len__(self) -> int:
        """Samples in an epoch."""
        return self._total

    def locate(self, epoch: int, start: int, stop: int) -> SampleRefs:
        """The samples at positions ``start`` to ``stop`` (not included); see ``EpochOrder``."""
        check_positions(self, epoch, start, stop)
        return self.at(epoch, np.arange(start, stop, dtype=np.int64))

    def at(self, epoch: int, positions: np.ndarray) -> SampleRefs:
        """The samples at any positions of an epoch; see ``Order``."""
        source = np.zeros(len(positions), np.int64)
        place = np.zeros(len(positions), np.int64)
        index = positions // self.window
        samples = np.array(self._samples, np.int64)
        for number in np.unique(index).tolist():
            chosen = np.flatnonzero(index == number)
            window = self._window(epoch, number)
            inside = positions[chosen] - number * self.window
            source[chosen] = window.source[inside]
            place[chosen] = window.before[source[chosen]] + window.turn[inside]
        place += epoch * samples[source]
        shard, row = np.empty_like(place), np.empty_like(place)
        for i, order in enumerate(self._sources):
            of_source = np.flatnonzero(source == i)
            passes, inside = np.divmod(place[of_source], self._sizes[i])
            for each in np.unique(passes).tolist():
                chosen = of_source[passes == each]
                found = order.at(each, inside[passes == each])
                shard[chosen] = found.shard + self._first[i]
                row[chosen] = found.row
        return SampleRefs(shard, row)

    def places(self, epoch: int, samples: SampleRefs) -> np.ndarray:
        """All positions of an epoch at which one of some samples stands; see ``Order``."""
        source = np.searchsorted(self._first, samples.shard, "right") - 1
        found: list[int] = []
        for i in np.unique(source).tolist():
            own = SampleRefs(samples.shard[source == i] - self._first[i], samples.row[source == i])
            m, size = self._samples[i], int(self._sizes[i])
            first, stop = epoch * m, (epoch + 1) * m
            for each in range(first // size, (stop - 1) // size + 1):
                line = each * size + self._sources[i].places(each, own)
                inside = line[(line >= first) & (line < stop)] - first
                found += [self._position(epoch, i, place) for place in inside.tolist()]
        return np.sort(np.array(found, np.int64))

    def crops(self, epoch: int, start: int, stop: int) -> np.ndarray:
        """Three uniform numbers for each position; see ``Order``."""
        check_positions(self, epoch, start, stop)
        return crops_of(self.seed, epoch, start, stop)

    def tally(self, epoch: int, stop: int, group: np.ndarray, groups: int) -> np.ndarray:
        """How many of the samples in front of a position are of each group of shards.

        Groups must be the sources; see ``Order``.
        """
        assert groups == len(self.shares)
        check_positions(self, epoch, 0, stop)
        number, inside = divmod(stop, self.window)
        found = np.array(taken(number * self.window, self._samples), np.int64)
        if inside:
            window = self._window(epoch, number)
            found += np.bincount(window.source[:inside], minlength=groups)
        return found

    def _order_of(self, share: Share) -> EpochOrder:
        name = hashlib.blake2b(f"{self.seed} {share.name}".encode(), digest_size=8).digest()
        seed = int.from_bytes(name, "little") & MOST_SEED
        window = max(1, round(self.window * share.samples / self._total))
        if share.units is not None:
            return WeightedOrder(share.counts, share.units, seed, window, self.shuffle)
        return EpochOrder(share.counts, seed, window, self.shuffle)

    def _position(self, epoch: int, source: int, place: int) -> int:
        """The position of the place-th sample that an epoch takes of a source."""
        low, high = 0, -(-self._total // self.window)
        while high - low > 1:
            middle = (low + high) // 2
            if taken(middle * self.window, self._samples)[source] <= place:
                low = middle
            else:
                high = middle
        window = self._window(epoch, low)
        inside = window.back[source][place - window.before[source]]
        return low * self.window + int(inside)

    def _window(self, epoch: int, number: int) -> _Window:
        key = (epoch, number)
        if key not in self._windows:
            start = number * self.window
            before = np.array(taken(start, self._samples), np.int64)
            after = taken(min(start + self.window, self._total), self._samples)
            source = np.repeat(np.arange(len(self.shares)), np.array(after, np.int64) - before)
            if self.shuffle:
                stream = [self.seed, _SOURCES, epoch, number]
                source = np.random.Generator(np.random.PCG64(stream)).permutation(source)
            back = [np.flatnonzero(source == i) for i in range(len(self.shares))]
            turn = np.empty(len(source), np.int64)
            for own in back:
                turn[own] = np.arange(len(own))
            self._windows[key] = _Window(source, turn, before, back)
            while len(self._windows) > _KEPT_WINDOWS:
                self._windows.popitem(last=False)
        self._windows.move_to_end(key)
        return self._windows[key]
