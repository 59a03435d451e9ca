"""Set operations on selections, shard by shard."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import numpy as np

from clipfast.data.selection import Selection, ShardChoice, read_selection


def combine(
    selections: Sequence[Selection], without: Sequence[Selection] = (), *, any_of: bool = False
) -> list[ShardChoice]:
    """What all of some selections keep, or any of them, and none of others.

    A shard that a selection does not name is one of which it keeps nothing.

    Args:
        selections: at least one.
        without: whose samples are taken out.
        any_of: what one of `selections` keeps is enough.

    Raises:
        ValueError: two were made of different indexes of a shard.
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
            made.append(ShardChoice(shard.shard, shard.samples, shard.mark, keep.tobytes()))
    return made


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
