"""Which of several captions an image is shown with: a function of seed, epoch and sample."""

from collections.abc import Sequence

import numpy as np

from clipfast.data.blank import is_blank
from clipfast.data.order import SampleRefs

_STEP = np.uint64(0x9E3779B97F4A7C15)
_FIRST, _SECOND = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)


def draws(seed: int, epoch: int, samples: SampleRefs) -> np.ndarray:
    """A random number for each sample, the same wherever and whenever it is read in an epoch.

    Four rounds of SplitMix64 (Steele, Lea and Flood 2014), one for each of seed, epoch, shard and
    row.

    Args:
        seed: of the run.
        epoch: from 0.
        samples: N references.

    Returns:
        ``[N]`` uint64 below 2^32.
    """
    state = np.zeros(len(samples), np.uint64)
    for word in (np.uint64(seed), np.uint64(epoch), samples.shard, samples.row):
        state = _mixed(state ^ np.asarray(word).astype(np.uint64))
    return state >> np.uint64(32)


def _mixed(state: np.ndarray) -> np.ndarray:
    """SplitMix64's step; products wrap around at 2^64."""
    state = state + _STEP
    state = (state ^ (state >> np.uint64(30))) * _FIRST
    state = (state ^ (state >> np.uint64(27))) * _SECOND
    return state ^ (state >> np.uint64(31))


def pick(texts: Sequence[str], draw: int | None) -> str:
    """One of some captions that says something; the first where none does.

    Args:
        texts: one at the least.
        draw: of ``draws``; None takes the first that says something.
    """
    if len(texts) == 1:
        return texts[0]
    said = [text for text in texts if not is_blank(text)] or texts[:1]
    return said[0] if draw is None else said[draw * len(said) >> 32]
