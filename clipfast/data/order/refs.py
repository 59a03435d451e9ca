"""What an order of samples is, and what it gives."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np

_CROPS = 2  # keeps the random numbers of crops apart from those of orders


@dataclass(frozen=True)
class SampleRefs:
    """Where N samples lie.

    Attributes:
        shard: ``[N]`` int64, index into the list of shards.
        row: ``[N]`` int64, index into that shard's table.
    """

    shard: np.ndarray
    row: np.ndarray

    def __len__(self) -> int:
        return len(self.shard)


class Order(Protocol):
    """Random access into epochs of samples.

    Attributes:
        counts: ``[S]`` int64, number of samples of each shard.
        seed: of all random choices.
        window: samples that are permuted together.
    """

    counts: np.ndarray
    seed: int
    window: int

    def __len__(self) -> int:
        """Positions of an epoch."""

    def at(self, epoch: int, positions: np.ndarray) -> SampleRefs:
        """The samples at any positions of an epoch.

        Args:
            epoch: from 0.
            positions: ``[N]`` int64, each from 0 to ``len(self) - 1``.

        Returns:
            References in the order of the positions.
        """

    def places(self, epoch: int, samples: SampleRefs) -> np.ndarray:
        """All positions of an epoch at which one of some samples stands: the inverse of ``at``.

        Args:
            epoch: from 0.
            samples: N references, none twice.

        Returns:
            Positions as int64, rising. A sample has one, none or several.
        """

    def crops(self, epoch: int, start: int, stop: int) -> np.ndarray:
        """Three uniform numbers in [0, 1) for each position: ``[stop - start, 3]`` float32.

        Raises:
            ValueError: the epoch has no such positions.
        """

    def tally(self, epoch: int, stop: int, group: np.ndarray, groups: int) -> np.ndarray:
        """How many of the samples in front of a position are of each group of shards.

        Args:
            epoch: from 0.
            stop: the position, from 0 to ``len(self)``.
            group: ``[S]`` int64, the group of each shard, from 0.
            groups: number of groups.

        Returns:
            ``[groups]`` int64; the sum is `stop`.
        """


def check_positions(order: Order, epoch: int, start: int, stop: int) -> None:
    """Raise where an epoch has no positions `start` to `stop`.

    Raises:
        ValueError: it has none.
    """
    if epoch < 0 or not 0 <= start <= stop <= len(order):
        raise ValueError(
            f"epoch {epoch} has no positions {start} to {stop}: epochs count from 0, and each "
            f"has {len(order):,} samples"
        )


def crops_of(seed: int, epoch: int, start: int, stop: int) -> np.ndarray:
    """See ``Order.crops``: a function of seed, epoch and position alone."""
    generator = np.random.Philox(key=[seed, epoch], counter=[0, 0, 0, _CROPS])
    # One Philox block yields four 64-bit words: position p owns block p.
    words = generator.advance(start).random_raw(4 * (stop - start)).reshape(-1, 4)[:, :3]
    return (words >> np.uint64(40)).astype(np.float32) / np.float32(1 << 24)
