"""A selection as the shards of a run obey it: which rows of which shard, and how many."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from clipfast.data.selection import Selection, ShardChoice
from clipfast.data.table import Identity
from clipfast.storage.paths import split


@dataclass(frozen=True)
class Selected:
    """What a selection keeps of the shards of a run.

    Attributes:
        choices: of each shard; None where the selection does not name it, and nothing is kept.
        counts: ``[S]`` int64, samples that are kept of each.
        samples: of the shards that it names, kept or not.
        unread: shards that it names and the run does not read.
        name: of the selection.
        digest: of the selection.
    """

    choices: Sequence[ShardChoice | None]
    counts: np.ndarray
    samples: int
    unread: int
    name: str
    digest: str

    def __str__(self) -> str:
        """What is left out, for a person."""
        unnamed = sum(choice is None for choice in self.choices)
        words = f"as {self.name} selects of {self.samples:,}"
        if unnamed:
            words += f"; it leaves out {unnamed:,} shard(s) whole, which it does not name"
        if self.unread:
            words += f"; {self.unread:,} shard(s) that it names are not read"
        return words


def obey(selection: Selection, shards: Sequence[str], known: Mapping[str, Identity]) -> Selected:
    """What a selection keeps of shards that have been looked at.

    Args:
        selection: it.
        shards: paths of tars.
        known: of each shard that the selection names.

    Raises:
        ValueError: it was made of another index of a shard, names none of them, or keeps nothing.
    """
    choices = [
        selection.choice(shard, known[shard].samples, known[shard].mark) if shard in known else None
        for shard in shards
    ]
    named = [choice for choice in choices if choice is not None]
    if not named:
        raise ValueError(
            f"selection {selection.name} names none of the {len(shards):,} shards, such as "
            f"{split(shards[0])[1]}; it names {len(selection.choices):,}"
            + (f", such as {selection.choices[0].shard}" if selection.choices else "")
        )
    counts = np.array([choice.kept if choice else 0 for choice in choices], np.int64)
    if not counts.any():
        raise ValueError(
            f"selection {selection.name} keeps none of the {sum(c.samples for c in named):,} "
            f"samples of {len(named):,} shards"
        )
    return Selected(
        choices,
        counts,
        sum(choice.samples for choice in named),
        len(selection.choices) - len({(choice.shard, choice.mark) for choice in named}),
        selection.name,
        selection.digest,
    )
