"""The sources of a training set: shards with a name, and the order that mixes them."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from clipfast.arguments import real_number, whole_number
from clipfast.data.order import EpochOrder, MixedOrder, Order, Share, WeightedOrder
from clipfast.data.order.shares import by_repeats, by_weights
from clipfast.data.patterns import expand
from clipfast.storage import storage_of

Patterns = str | Sequence[str] | Mapping[str, str | Sequence[str]]


@dataclass(frozen=True)
class Sources:
    """Shards, and whose they are.

    Attributes:
        shards: of all sources, one source behind the other.
        names: of the sources; none where the shards were not named.
        source: ``[S]`` int64, position in `names` of each shard; 0 where there are none.
    """

    shards: list[str]
    names: tuple[str, ...]
    source: np.ndarray


@dataclass(frozen=True)
class Mixing:
    """In which shares sources are mixed. Nothing said: each sample once per epoch.

    Attributes:
        weights: of each source; an epoch takes samples in this ratio.
        repeats: how often an epoch passes through a source; 1 where nothing is said.
        epoch_samples: of an epoch; None: as many as there are, or as `repeats` gives.

    Raises:
        TypeError: a value is of another kind; a ``ValueError`` too.
        ValueError: a value is not above 0, or two of them answer the same question.
    """

    weights: Mapping[str, float] | None = None
    repeats: Mapping[str, float] | None = None
    epoch_samples: int | None = None

    def __post_init__(self) -> None:
        for what in ("weights", "repeats"):
            for name, value in (getattr(self, what) or {}).items():
                if not 0 < real_number(f"{what} of {name!r}", value) < math.inf:
                    raise ValueError(f"{what} of {name!r} must be above 0; got {value}")
        if self.weights and self.repeats:
            raise ValueError("weights and repeats are two answers to one question: pass one")
        if self.epoch_samples is not None:
            whole_number("epoch_samples", self.epoch_samples, 1)
            if self.repeats:
                raise ValueError(
                    "epoch_samples and repeats are two answers to one question: repeats say how "
                    "many samples an epoch has"
                )

    def __bool__(self) -> bool:
        """Whether something is said."""
        return bool(self.weights or self.repeats or self.epoch_samples)


def patterns_of(patterns: Patterns) -> list[str]:
    """All patterns, whosever they are; what is none is left for ``expand`` to refuse."""
    if isinstance(patterns, Mapping):
        return [each for value in patterns.values() for each in patterns_of(value)]
    if isinstance(patterns, Sequence) and not isinstance(patterns, str | bytes):
        return list(patterns)
    return [patterns]


def find_sources(patterns: Patterns) -> Sources:
    """The shards that patterns name.

    Args:
        patterns: one, several, or those of each source by its name.

    Raises:
        ValueError: two sources have a shard in common; or see ``clipfast.data.patterns.expand``.
    """
    if not isinstance(patterns, Mapping):
        shards = expand(patterns)
        return Sources(shards, (), np.zeros(len(shards), np.int64))
    shards, sources = [], []
    owner: dict[str, str] = {}
    for number, (name, of_source) in enumerate(patterns.items()):
        for shard in expand(of_source):
            first = owner.setdefault(storage_of(shard).identity(shard), name)
            if first != name:
                raise ValueError(
                    f"shard {shard!r} is of source {first!r} and of source {name!r}; its samples "
                    "would be drawn twice: give it to one of them"
                )
            shards.append(shard)
            sources.append(number)
    return Sources(shards, tuple(patterns), np.array(sources, np.int64))


def order_of(
    sources: Sources,
    counts: np.ndarray,
    mixing: Mixing,
    *,
    seed: int,
    window: int,
    shuffle: bool,
    units: Sequence[np.ndarray | None] | None = None,
) -> Order:
    """The order in which sources are read.

    Args:
        sources: of the shards.
        counts: ``[S]`` int64, samples of each shard.
        mixing: the shares.
        seed: see ``EpochOrder``, as the others.
        window: samples shuffled together.
        shuffle: False reads as the shards lie.
        units: weights of samples, shard by shard, see ``WeightedOrder``; None: there are none.

    Returns:
        An order over all shards where nothing is said of shares, whatever their names.

    Raises:
        ValueError: the shares are not those of these sources.
    """
    if not mixing:
        return _order(counts, units, seed, window, shuffle)
    names = sources.names or ("all",)
    mine = [np.flatnonzero(sources.source == number) for number in range(len(names))]
    own = {name: counts[here] for name, here in zip(names, mine, strict=True)}
    weighted = [
        None if units is None else [units[shard] for shard in here.tolist()] for here in mine
    ]
    # Of one pass: without weights as many as there are.
    sizes = {
        name: len(_order(each, more, seed, window, shuffle))
        for (name, each), more in zip(own.items(), weighted, strict=True)
    }
    if mixing.repeats:
        samples = by_repeats(sizes, mixing.repeats)
    else:
        weights = mixing.weights or {name: float(size) for name, size in sizes.items()}
        samples = by_weights(sizes, weights, mixing.epoch_samples or sum(sizes.values()))
    shares = [
        Share(name, each, m, more)
        for (name, each), m, more in zip(own.items(), samples, weighted, strict=True)
    ]
    return MixedOrder(shares, seed, window, shuffle)


def _order(
    counts: np.ndarray,
    units: Sequence[np.ndarray | None] | None,
    seed: int,
    window: int,
    shuffle: bool,
) -> EpochOrder:
    if units is None or all(each is None for each in units):
        return EpochOrder(counts, seed, window, shuffle)
    return WeightedOrder(counts, units, seed, window, shuffle)


class Tally:
    """Counts how many samples of each source batches have taken, without looking at the batches.

    A broken sample counts for its own source, whatever stands in for it.

    Args:
        order: of the samples.
        sources: of the shards.
        per_epoch: samples that batches take of an epoch.
    """

    def __init__(self, order: Order, sources: Sources, per_epoch: int) -> None:
        self._order = order
        self._sources = sources
        self._per_epoch = per_epoch
        self._epochs = 0
        self._before = np.zeros(len(sources.names), np.int64)

    def count(self, epoch: int, inside: int) -> dict[str, int]:
        """Samples of each source since the beginning.

        Args:
            epoch: the one that batches are in.
            inside: samples that they have taken of it.
        """
        if not self._sources.names:
            return {}
        if epoch < self._epochs:
            self._epochs = 0
            self._before[:] = 0
        while self._epochs < epoch:
            self._before += self._of(self._epochs, self._per_epoch)
            self._epochs += 1
        found = self._before + self._of(epoch, inside)
        return dict(zip(self._sources.names, found.tolist(), strict=True))

    def _of(self, epoch: int, stop: int) -> np.ndarray:
        return self._order.tally(epoch, stop, self._sources.source, len(self._sources.names))
