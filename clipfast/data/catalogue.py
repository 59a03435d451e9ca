"""What a run knows of its shards before it reads one: how many samples each has.

Where they lie in stores, ranks share the work: each looks at some of them, and tells the others.
"""

from collections.abc import Callable, Sequence

import numpy as np

from clipfast.data.fields import Fields
from clipfast.data.heads import Head, heads, warn_of_scans
from clipfast.data.selecting import Selected, obey
from clipfast.data.selection import Selection, read_selection
from clipfast.data.sources import Patterns, patterns_of
from clipfast.data.together import ALONE, Together
from clipfast.storage.paths import scheme_of


def together_for(patterns: Patterns, together: Together) -> Together:
    """The ranks that look at shards by turns.

    Files of a machine are looked at by each rank: another machine may have others.

    Args:
        patterns: of the shards.
        together: all ranks.
    """
    is_near = any(scheme_of(str(pattern)) == "file" for pattern in patterns_of(patterns))
    return ALONE if is_near else together


def look_up(
    shards: Sequence[str],
    fields: Sequence[Fields],
    select: Selection | str | None,
    together: Together,
    on_wait: Callable[[], None] | None = None,
) -> tuple[Selected | None, np.ndarray]:
    """Look at each shard once, over all ranks. A collective of `together`.

    Args:
        shards: paths of tars.
        fields: which members are image and caption, of each.
        select: which samples are read; None: all.
        together: ranks with the same arguments.
        on_wait: called each second.

    Returns:
        What a selection keeps, and ``[S]`` int64, samples of each shard that are read.

    Raises:
        ValueError, OSError: see ``TrainLoader``.
    """
    if isinstance(select, str):
        select = read_selection(select)
    wanted = [i for i, shard in enumerate(shards) if select is None or select.names(shard)]
    mine = wanted[together.rank :: together.world_size]
    title = "indexes" if together.rank == 0 and together is not ALONE else ""

    def look() -> list[Head]:
        return heads(
            [shards[i] for i in mine],
            [fields[i] for i in mine],
            marks=select is not None,
            on_wait=on_wait,
            title=title,
        )

    found: dict[int, Head] = {}
    for rank, theirs in enumerate(together.gather(look)):
        found |= dict(zip(wanted[rank :: together.world_size], theirs, strict=True))
    if select is not None:
        selected = obey(select, shards, {shards[i]: head.identity for i, head in found.items()})
        return selected, selected.counts
    known = [found[i] for i in wanted]
    if together.rank == 0:
        warn_of_scans(known)
    return None, np.array([head.samples for head in known], np.int64)
