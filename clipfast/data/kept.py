"""Which samples of its shards a loader reads: those that are selected and have a caption."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from clipfast.data.captions import captions_of
from clipfast.data.fields import Fields
from clipfast.data.order.copies import units_of
from clipfast.data.selecting import Selected
from clipfast.data.sidecar import Captions


@dataclass(frozen=True)
class Kept:
    """What is read of shards.

    Attributes:
        counts: ``[S]`` int64, samples of each.
        units: their weights, shard by shard, as ``clipfast.data.order.WeightedOrder`` takes them;
            None: none has one.
    """

    counts: np.ndarray
    units: Sequence[np.ndarray | None] | None


def kept(
    shards: Sequence[str],
    counts: np.ndarray,
    selected: Selected | None,
    captions: Captions | None,
    fields: Fields,
) -> Kept:
    """What a selection and tables of captions leave of shards.

    Args:
        shards: paths of tars.
        counts: ``[S]`` int64, samples of each, of those that are selected.
        selected: by a selection; None: all.
        captions: those that stand in tables; None: all stand in the tars.
        fields: which members of tars are image and caption.

    Raises:
        ValueError: the selection chooses among other captions, an index has changed, or nothing is
            left.
    """
    if selected is None and captions is None:
        return Kept(counts, None)
    left = counts.copy()
    units: list[np.ndarray | None] = [None] * len(shards)
    for shard, path in enumerate(shards):
        choice = None if selected is None else selected.choices[shard]
        if choice is not None and choice.captions_of:
            table = "" if captions is None else captions.digest_of(shard)
            here = captions_of(fields.captions, table)
            if choice.captions_of != here:
                assert selected is not None
                raise ValueError(
                    f"selection {selected.name} chooses among the captions "
                    f"{choice.captions_of!r} of {path}, and this run reads {here!r}: pass the "
                    "options that the selection was made with, or make it anew"
                )
        usable: np.ndarray | slice = slice(None)
        if captions is not None and captions.here(shard) and (selected is None or choice):
            usable = captions.usable(shard, choice.mark if choice else "")
            usable = usable if choice is None else usable[choice.rows()]
            left[shard] = int(usable.sum())
        if choice is not None and (weights := choice.weighted()) is not None:
            units[shard] = units_of(weights[usable])
    if not left.any() and counts.any():
        raise ValueError(
            f"none of the {int(counts.sum()):,} samples that are selected has a caption in the "
            "tables of captions"
        )
    return Kept(left, units if any(each is not None for each in units) else None)
