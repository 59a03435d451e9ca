"""Set operations on selections, shard by shard."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import numpy as np

from clipfast.data.selection import (
    LEAST_WEIGHT,
    MOST_WEIGHT,
    Selection,
    ShardChoice,
    choose,
    read_selection,
)


def combine(
    selections: Sequence[Selection], without: Sequence[Selection] = (), *, any_of: bool = False
) -> list[ShardChoice]:
    """What all of some selections keep, or any of them, and none of others.

    A shard that a selection does not name is one of which it keeps nothing. Of those that keep a
    sample, weights are multiplied where all must, and the largest counts where one is enough; one
    without weights has the weight 1. The caption of a sample is that which they choose, and those
    that choose one must agree. What `without` weighs and chooses does not count.

    Args:
        selections: at least one.
        without: whose samples are taken out.
        any_of: what one of `selections` keeps is enough.

    Raises:
        ValueError: two were made of different indexes of a shard, or choose different captions.
    """
    named: dict[tuple[str, str], ShardChoice] = {}
    for selection in [*selections, *without]:
        for choice in selection.choices:
            named.setdefault((choice.shard, choice.mark), choice)
    join: Callable[[np.ndarray, np.ndarray], np.ndarray]
    join = np.bitwise_or if any_of else np.bitwise_and
    made = []
    for shard in named.values():
        keep = functools.reduce(join, [_bits(selection, shard) for selection in selections])
        for selection in without:
            keep = keep & ~_bits(selection, shard)
        if any(selection.names(shard.shard) for selection in selections):
            plain = ShardChoice(shard.shard, shard.samples, shard.mark, keep.tobytes())
            made.append(_with_choices(plain, selections, any_of))
    return made


def _with_choices(plain: ShardChoice, selections: Sequence[Selection], any_of: bool) -> ShardChoice:
    """The choice with weights and captions of those selections that keep its samples."""
    found = [each.choice(plain.shard, plain.samples, plain.mark) for each in selections]
    known = [each for each in found if each is not None]
    if not any(each.captions or each.weights for each in known):
        return plain
    rows = plain.rows()
    weights = np.zeros(plain.samples) if any_of else np.ones(plain.samples)
    captions = np.full(plain.samples, -1, np.int64)
    captions_of = {each.captions_of for each in known if each.captions}
    if len(captions_of) > 1:
        raise ValueError(
            f"two selections choose among different captions of {plain.shard}: "
            f"{' and '.join(map(repr, sorted(captions_of)))}"
        )
    for each in known:
        kept = each.rows()
        own = each.weighted()
        own = np.ones(len(kept)) if own is None else own.astype(np.float64)
        weights[kept] = np.maximum(weights[kept], own) if any_of else weights[kept] * own
        chosen = each.chosen()
        if chosen is None:
            continue
        here = np.isin(kept, rows) & (chosen >= 0)
        kept, chosen = kept[here], chosen[here]
        other = (captions[kept] >= 0) & (captions[kept] != chosen)
        if other.any():
            raise ValueError(
                f"two selections choose different captions of {int(other.sum()):,} samples of "
                f"{plain.shard}, such as row {kept[other][0]:,}: leave one of them out"
            )
        captions[kept] = chosen
    return choose(
        plain.shard,
        plain.samples,
        plain.mark,
        rows,
        captions=captions[rows],
        captions_of=next(iter(captions_of), ""),
        weights=np.clip(weights[rows], LEAST_WEIGHT, MOST_WEIGHT),
    )


def _bits(selection: Selection, shard: ShardChoice) -> np.ndarray:
    choice = selection.choice(shard.shard, shard.samples, shard.mark)
    if choice is None:
        return np.zeros(len(shard.keep), np.uint8)
    return np.frombuffer(choice.keep, np.uint8)


@functools.lru_cache(1)
def known_selection(path: str, digest: str) -> Selection:
    """A selection that a step names, read once per process.

    Args:
        path: of its file.
        digest: what it had at the start.

    Raises:
        ValueError: it has changed since.
    """
    selection = read_selection(path)
    if selection.digest != digest:
        raise ValueError(f"{path} has changed since the start: run again")
    return selection


def kept_rows(selection: Selection | None, shard: str, samples: int, mark: str) -> np.ndarray:
    """[N] bool: which samples of a shard a selection keeps; all where there is none.

    Args:
        selection: the selection.
        shard: path of the tar.
        samples: N.
        mark: digest of its index's lines.

    Raises:
        ValueError: the selection was made of another index.
    """
    if selection is None:
        return np.ones(samples, bool)
    kept = np.zeros(samples, bool)
    choice = selection.choice(shard, samples, mark)
    if choice is not None:
        kept[choice.rows()] = True
    return kept
