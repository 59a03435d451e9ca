"""The order of one set of shards, each sample once per epoch.

Shards are permuted each epoch and laid end to end; the line of samples is cut into windows, and
each window is permuted in turn. A position in the epoch therefore names one sample, whatever the
number of ranks: the stream goes on from anywhere, on more or fewer GPUs, and no sample is seen
twice."""

from collections import OrderedDict

import numpy as np

from clipfast.arguments import WrongKindError, shown, truth, whole_number
from clipfast.data.order.refs import SampleRefs, check_positions, crops_of

# numpy's generators take 64 bits; the command line leaves one for the sign.
MOST_SEED = 2**63 - 1
_SHARDS, _SAMPLES = 0, 1  # keep the random streams of one epoch apart
_KEPT_WINDOWS = 3
_KEPT_EPOCHS = 2


class EpochOrder:
    """Random access into shuffled epochs over shards of known sizes.

    Args:
        counts: ``[S]``, number of samples of each shard.
        seed: of all permutations.
        window: samples permuted together. A window that holds the whole data set is a full shuffle;
            a smaller one keeps reads within a few shards at a time.
        shuffle: False reads shards and samples as they lie.

    Raises:
        TypeError: an argument is of another kind; a ``ValueError`` too.
        ValueError: an argument is out of its range.
    """

    def __init__(
        self, counts: np.ndarray, seed: int = 0, window: int = 1 << 18, shuffle: bool = True
    ) -> None:
        given = np.asarray(counts)
        if given.ndim != 1 or not (given.size == 0 or np.issubdtype(given.dtype, np.integer)):
            raise WrongKindError(f"counts must be a list of whole numbers; got {shown(counts)}")
        if (given < 0).any():
            raise ValueError(f"counts must not be negative; got {given.min()}")
        self.counts = given.astype(np.int64)
        self.seed = whole_number("seed", seed, 0, MOST_SEED)
        self.window = whole_number("window", window, 1, why="samples shuffled together")
        self.shuffle = truth("shuffle", shuffle)
        self._lines: OrderedDict[int, tuple[np.ndarray, np.ndarray]] = OrderedDict()
        self._windows: OrderedDict[tuple[int, int], np.ndarray] = OrderedDict()

    def __len__(self) -> int:
        """Samples in an epoch."""
        return int(self.counts.sum())

    def locate(self, epoch: int, start: int, stop: int) -> SampleRefs:
        """The samples at positions ``start`` to ``stop`` (not included) of an epoch.

        Args:
            epoch: from 0.
            start: first position, at least 0.
            stop: end, at most ``len(self)``.

        Returns:
            References in reading order.

        Raises:
            ValueError: the epoch has no such positions.
        """
        check_positions(self, epoch, start, stop)
        return self.at(epoch, np.arange(start, stop, dtype=np.int64))

    def at(self, epoch: int, positions: np.ndarray) -> SampleRefs:
        """The samples at any positions of an epoch.

        Args:
            epoch: from 0.
            positions: ``[N]`` int64, each from 0 to ``len(self) - 1``.

        Returns:
            References in the order of the positions.
        """
        shards, starts = self._line(epoch)
        places = positions.copy()
        if self.shuffle:
            window = places // self.window
            for index in np.unique(window):
                chosen = window == index
                base = index * self.window
                places[chosen] = base + self._permutation(epoch, int(index))[places[chosen] - base]
        slot = np.searchsorted(starts, places, side="right") - 1
        return SampleRefs(shard=shards[slot], row=places - starts[slot])

    def positions(self, epoch: int, samples: SampleRefs) -> np.ndarray:
        """Where samples stand in an epoch, the inverse of ``at``.

        Args:
            epoch: from 0.
            samples: N references.

        Returns:
            ``[N]`` int64.
        """
        shards, starts = self._line(epoch)
        slots = np.zeros(len(self.counts), np.int64)
        slots[shards] = np.arange(len(shards))
        places = starts[slots[samples.shard]] + samples.row
        if self.shuffle:
            window = places // self.window
            for index in np.unique(window):
                chosen = window == index
                base = index * self.window
                permutation = self._permutation(epoch, int(index))
                back = np.empty_like(permutation)
                back[permutation] = np.arange(len(permutation))
                places[chosen] = base + back[places[chosen] - base]
        return places

    def crops(self, epoch: int, start: int, stop: int) -> np.ndarray:
        """Three uniform numbers in [0, 1) for each position: ``[stop - start, 3]`` float32.

        Raises:
            ValueError: the epoch has no such positions.
        """
        check_positions(self, epoch, start, stop)
        return crops_of(self.seed, epoch, start, stop)

    def places(self, epoch: int, samples: SampleRefs) -> np.ndarray:
        """The positions of samples, rising; see ``Order``."""
        return np.sort(self.positions(epoch, samples))

    def tally(self, epoch: int, stop: int, group: np.ndarray, groups: int) -> np.ndarray:
        """How many of the samples in front of a position are of each group; see ``Order``."""
        check_positions(self, epoch, 0, stop)
        shards, starts = self._line(epoch)
        whole = stop - stop % self.window if self.shuffle else stop
        # Windows are permuted within themselves.
        each = np.clip(whole - starts, 0, self._counts_of(epoch)[shards])
        found = np.zeros(groups, np.int64)
        np.add.at(found, group[shards], each)
        if whole < stop:
            rest = self.at(epoch, np.arange(whole, stop, dtype=np.int64))
            found += np.bincount(group[rest.shard], minlength=groups)
        return found

    def _line(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Shards end to end, the empty ones left out, and the place where each begins."""
        if epoch not in self._lines:
            counts = self._counts_of(epoch)
            shards = np.arange(len(counts))
            if self.shuffle:
                shards = self._generator(_SHARDS, epoch, 0).permutation(shards)
            shards = shards[counts[shards] > 0]
            starts = np.concatenate([[0], np.cumsum(counts[shards])[:-1]]).astype(np.int64)
            self._lines[epoch] = shards, starts
            while len(self._lines) > _KEPT_EPOCHS:
                self._lines.popitem(last=False)
        return self._lines[epoch]

    def _counts_of(self, epoch: int) -> np.ndarray:
        """``[S]`` int64: positions of each shard in an epoch."""
        return self.counts

    def _permutation(self, epoch: int, window: int) -> np.ndarray:
        key = (epoch, window)
        if key not in self._windows:
            size = min(self.window, len(self) - window * self.window)
            self._windows[key] = self._generator(_SAMPLES, epoch, window).permutation(size)
            while len(self._windows) > _KEPT_WINDOWS:
                self._windows.popitem(last=False)
        self._windows.move_to_end(key)
        return self._windows[key]

    def _generator(self, *stream: int) -> np.random.Generator:
        return np.random.Generator(np.random.PCG64([self.seed, *stream]))
