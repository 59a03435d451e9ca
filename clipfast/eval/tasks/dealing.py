"""Work that needs no other rank, dealt out to all of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from clipfast.eval.sharing import Sharing

Job = Callable[[], Any]


def dealt(sharing: Sharing, jobs: Sequence[Job]) -> tuple[list[Any], list[float]]:
    """Do jobs, each on one rank, in turn. A collective.

    Args:
        sharing: this rank among the others.
        jobs: the same on every rank, in the same order; what they return pickles.

    Returns:
        What each returned and its seconds, the same on every rank.

    Raises:
        ValueError: a job of this rank did.
    """
    mine = []
    for number in range(sharing.rank, len(jobs), sharing.world_size):
        began = time.perf_counter()
        made = jobs[number]()
        mine.append((number, made, time.perf_counter() - began))
    every = sorted(
        (entry for one in sharing.gather_objects(mine) for entry in one), key=lambda e: e[0]
    )
    return [made for _, made, _ in every], [seconds for _, _, seconds in every]
