"""What a run knows of its shards before it reads one: how many samples each has.

Where they lie in stores, ranks share the work: each looks at some of them, and tells the others.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from clipfast.data.fields import Fields, without_captions
from clipfast.data.heads import Head, heads, warn_of_scans
from clipfast.data.kept import Kept, kept
from clipfast.data.selecting import Selected, obey
from clipfast.data.selection import Selection, read_selection
from clipfast.data.sidecar import Captions, Sidecar, bind, sidecars_of
from clipfast.data.sources import Patterns, Sources, patterns_of
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


@dataclass(frozen=True, eq=False)
class Catalogue:
    """What is known of shards.

    Attributes:
        shards: paths of tars.
        held: ``[len(shards)]`` int64, complete samples; 0 where none is read, and none was counted.
        selected: what a selection keeps; None: there is none.
        captions: those that stand in tables; None: all stand in the tars.
        kept: which samples are read.
    """

    shards: Sequence[str]
    held: np.ndarray
    selected: Selected | None
    captions: Captions | None
    kept: Kept


def look_up(
    sources: Sources,
    fields: Fields,
    *,
    select: Selection | str | None = None,
    caption_tables: Sidecar | Mapping[str, Sidecar] | None = None,
    caption_cache: str = "",
    together: Together = ALONE,
    on_wait: Callable[[], None] | None = None,
) -> Catalogue:
    """Look at each shard once, over all ranks. A collective of `together`.

    Args:
        sources: the shards.
        fields: which members are image and caption.
        select: which samples are read; None: all.
        caption_tables: where captions stand, if not in the tars; see ``TrainLoader``.
        caption_cache: see ``TrainLoader``.
        together: ranks with the same arguments.
        on_wait: called each second.

    Raises:
        TypeError, ValueError, OSError: see ``TrainLoader``.
    """
    shards = sources.shards
    if isinstance(select, str):
        select = read_selection(select)
    sidecars = sidecars_of(caption_tables, sources.names, sources.source)
    wanted = [
        i
        for i, shard in enumerate(shards)
        if select is None or sidecars[i] is not None or select.names(shard)
    ]
    bare = without_captions(fields)
    each = [fields if sidecar is None else bare for sidecar in sidecars]
    has_tables = any(sidecar is not None for sidecar in sidecars)
    found = _looked_at(
        shards, each, wanted, together, on_wait, marks=select is not None or has_tables
    )
    captions = bind(
        sidecars,
        shards,
        {i: head.identity for i, head in found.items()},
        fields,
        caption_cache,
        together,
    )
    held = np.zeros(len(shards), np.int64)
    held[wanted] = [found[i].samples for i in wanted]
    if select is None:
        if together.rank == 0:
            warn_of_scans(list(found.values()))
        selected, counts = None, held
    else:
        named = {i: head for i, head in found.items() if select.names(shards[i])}
        selected = obey(select, shards, {shards[i]: head.identity for i, head in named.items()})
        counts = selected.counts
    used = kept(shards, counts, selected, captions, fields)
    return Catalogue(shards, held, selected, captions, used)


def _looked_at(
    shards: Sequence[str],
    fields: Sequence[Fields],
    wanted: Sequence[int],
    together: Together,
    on_wait: Callable[[], None] | None,
    *,
    marks: bool,
) -> dict[int, Head]:
    """What is known of each wanted shard: ranks look by turns, and tell one another."""
    mine = wanted[together.rank :: together.world_size]

    def look() -> list[Head]:
        return heads(
            [shards[i] for i in mine],
            [fields[i] for i in mine],
            marks=marks,
            on_wait=on_wait,
            title="indexes" if together.rank == 0 and together is not ALONE else "",
        )

    found: dict[int, Head] = {}
    for rank, theirs in enumerate(together.gather(look)):
        found |= dict(zip(wanted[rank :: together.world_size], theirs, strict=True))
    return {i: found[i] for i in wanted}
