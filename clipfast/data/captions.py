"""Which of several captions an image is shown with: a function of seed, epoch and sample."""

from collections.abc import Sequence

import numpy as np

from clipfast.data.blank import is_blank
from clipfast.data.order import SampleRefs
from clipfast.data.splitmix import mixed


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
        state = mixed(state ^ np.asarray(word).astype(np.uint64))
    return state >> np.uint64(32)


def pick(texts: Sequence[str], draw: int | None, chosen: int = -1) -> str:
    """One of some captions that says something; the first where none does.

    Args:
        texts: one at the least.
        draw: of ``draws``; None takes the first that says something.
        chosen: the one that a selection names; below 0 it names none.

    Raises:
        ValueError: there is no such one; begins "caption".
    """
    if chosen >= len(texts):
        raise ValueError(f"caption {chosen} is chosen, counted from 0, and there are {len(texts)}")
    if chosen >= 0:
        return texts[chosen]
    if len(texts) == 1:
        return texts[0]
    said = saying(texts)
    return said[0] if draw is None else said[draw * len(said) >> 32]


def saying(texts: Sequence[str]) -> list[str]:
    """Those of some captions that say something; or the first where none does.

    Args:
        texts: one at the least.
    """
    return [text for text in texts if not is_blank(text)] or list(texts[:1])


def captions_of(sources: Sequence[str], table: str = "") -> str:
    """What tells the captions of a shard from others that its samples may have.

    A selection that chooses captions by number holds it (``clipfast.data.selection``).

    Args:
        sources: where captions stand in the tar, as ``Fields.captions``.
        table: digest of captions that stand in a table; "": there is none.
    """
    where = " ".join(sources)
    return f"{table} {where}" if table else where
