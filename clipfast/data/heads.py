"""How many samples each of many shards has, from the first line of its index.

In a store that takes one request per shard: a listing says of a thousand shards at a time whether
they have an index, and how large they are.
"""

import contextvars
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import partial

import numpy as np
from tqdm import tqdm

from clipfast.data.fields import FIELDS, Fields
from clipfast.data.indexfile import (
    INDEX_COMMAND,
    has_index,
    index_path,
    read_count,
    read_identity,
)
from clipfast.data.table import Identity, read_table
from clipfast.storage import Stat, storage_of

# Looked at together: the time is the latency of a file system, or of a store.
_NEAR, _FAR = 16, 64
# From this many shards on, scanning at each start costs minutes and is worth a warning.
_MANY_SCANS = 8
# Seconds: between two calls of `on_wait`, before a bar is shown, and between two looks of it.
_SECONDS, _SHOWN_AFTER, _REDRAWN = 1.0, 5.0, 10.0

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Head:
    """What is known of a shard before its table is read.

    Attributes:
        samples: N.
        mark: see ``Identity``; "" where it was not asked for.
        indexed: it has an index.
    """

    samples: int
    mark: str
    indexed: bool

    @property
    def identity(self) -> Identity:
        """Samples and mark."""
        return Identity(self.samples, self.mark)


def heads(
    shards: Sequence[str],
    fields: Fields | Sequence[Fields] = FIELDS,
    *,
    marks: bool = False,
    on_wait: Callable[[], None] | None = None,
    title: str = "",
) -> list[Head]:
    """Look at many shards.

    Args:
        shards: paths of tars.
        fields: which members are image and caption, of all shards or of each.
        marks: tell them too.
        on_wait: called each second.
        title: of a bar that is shown where it takes long; "": none is.

    Raises:
        ValueError: a shard or its index is unfit.
        OSError: one cannot be read.
    """
    if not shards:
        return []
    stats = _far(shards)
    found: list[Head] = []
    threads = min(_FAR if stats else _NEAR, len(shards))
    with (
        ThreadPoolExecutor(threads, thread_name_prefix="clipfast-heads") as pool,
        tqdm(
            desc=title,
            total=len(shards),
            unit="shard",
            delay=_SHOWN_AFTER,
            mininterval=_REDRAWN,
            leave=False,
            disable=not title,
        ) as bar,
    ):
        each = [fields] * len(shards) if isinstance(fields, Fields) else fields
        look = partial(_head, marks=marks, stats=stats)
        tasks: list[Future[Head]] = [
            pool.submit(contextvars.copy_context().run, look, shard, own)
            for shard, own in zip(shards, each, strict=True)
        ]
        try:
            for task in tasks:
                while not wait([task], _SECONDS).done:
                    if on_wait is not None:
                        on_wait()
                found.append(task.result())
                bar.update()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return found


def counts(shards: Sequence[str], fields: Fields | Sequence[Fields] = FIELDS) -> np.ndarray:
    """Number of samples of every shard.

    Args:
        shards: paths of tars.
        fields: which members are image and caption, of all shards or of each.

    Returns:
        [len(shards)] int64.
    """
    found = heads(shards, fields)
    warn_of_scans(found)
    return np.array([head.samples for head in found], np.int64)


def warn_of_scans(found: Sequence[Head]) -> None:
    """Log that many shards have no index.

    Args:
        found: of all shards.
    """
    unindexed = sum(not head.indexed for head in found)
    if unindexed >= _MANY_SCANS:
        _log.warning(
            "%d of %d shards have no index, and are scanned at every start with their images "
            "unchecked; run once: %s <the same shards>",
            unindexed,
            len(found),
            INDEX_COMMAND,
        )


def _far(shards: Sequence[str]) -> dict[str, Stat]:
    """What stores say of shards in them, and of their indexes."""
    paths: dict[str, list[str]] = {}
    for shard in shards:
        if storage_of(shard).is_remote:
            paths.setdefault(shard.partition("://")[0], []).extend((shard, index_path(shard)))
    return {
        path: stat
        for of_scheme in paths.values()
        for path, stat in storage_of(of_scheme[0]).stats(of_scheme).items()
    }


def _head(shard: str, fields: Fields, marks: bool, stats: dict[str, Stat]) -> Head:
    far = storage_of(shard).is_remote
    indexed = index_path(shard) in stats if far else has_index(shard)
    if not indexed:
        table = read_table(shard, fields)
        return Head(len(table), table.mark, indexed=False)
    size = stats[shard].size if shard in stats else None
    if not marks:
        return Head(read_count(shard, size), "", indexed=True)
    return Head(*read_identity(shard, size), indexed=True)
