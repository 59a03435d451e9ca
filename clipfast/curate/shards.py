"""The shards that a step goes over, and what it reads of them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise

import numpy as np

from clipfast.curate.engine.parts import digest
from clipfast.data.captions import captions_of
from clipfast.data.fields import FIELDS, Fields, without_captions
from clipfast.data.shards import Table, expand, read_table
from clipfast.data.sidecar import Sidecar
from clipfast.data.sidecar.join import join
from clipfast.data.sidecar.joined import Joined
from clipfast.data.table import identify
from clipfast.data.tarwalk import check_length
from clipfast.storage import storage_of
from clipfast.storage.paths import split

_THREADS = 16
# Of a store, so much is asked for at once; two batches are in memory.
_BATCH_BYTES, _BATCH_MEMBERS = 16 << 20, 4096


@dataclass(frozen=True)
class Told:
    """Captions of a shard that stand in tables.

    Attributes:
        joined: path of the file in which they are joined with the shards.
        number: of the shard in it.
        digest: of them.
        own: a sample without any takes that of the tar.
    """

    joined: str
    number: int
    digest: str
    own: bool


@dataclass(frozen=True)
class Shard:
    """A shard, and what a selection knows it by.

    Attributes:
        path: of the tar.
        samples: of its index.
        mark: digest of its index's lines.
        captions: where they are in the tar, as --data.captions says it.
        told: those that stand in tables; None: there are none.
    """

    path: str
    samples: int
    mark: str
    captions: tuple[str, ...] = FIELDS.captions
    told: Told | None = None

    @property
    def name(self) -> str:
        """The tar without its folder."""
        return split(self.path)[1]

    @property
    def part(self) -> str:
        """See ``clipfast.curate.engine.Item``: an index made anew makes another one."""
        other = "" if self.captions == FIELDS.captions else f"-{digest(self.captions)}"
        told = f"-{digest([self.told.digest, self.told.own])}" if self.told else ""
        return f"{self.name}-{self.mark}{other}{told}"

    @property
    def captions_of(self) -> str:
        """What tells its captions from others, see ``clipfast.data.captions.captions_of``."""
        return captions_of(self.captions, self.told.digest if self.told else "")

    @property
    def fields(self) -> Fields:
        """Which members are image and caption."""
        fields = Fields(captions=self.captions)
        return without_captions(fields) if self.told else fields

    def table(self) -> Table:
        """Where the samples lie.

        Raises:
            ValueError: the shard or its index is not what it was at the start.
        """
        table = read_table(self.path, self.fields)
        if len(table) != self.samples:
            raise ValueError(
                f"shard {self.path} has {len(table):,} samples, and had {self.samples:,} at the "
                "start: let nothing write to it, and run again"
            )
        return table


@dataclass(frozen=True)
class ShardTable:
    """A shard and what a step made of it: an item of the steps behind that one.

    Attributes:
        shard: the shard.
        path: of the table.
    """

    shard: Shard
    path: str

    @property
    def part(self) -> str:
        """See ``clipfast.curate.engine.Item``."""
        return self.shard.part


def shards_of(
    patterns: Sequence[str],
    captions: Sequence[str] = FIELDS.captions,
    sidecar: Sidecar | None = None,
    folder: str = "",
) -> list[Shard]:
    """The shards that patterns name, in the order of their names: that of the patterns changes
    nothing.

    Args:
        patterns: as --data.train takes them.
        captions: as --data.captions does.
        sidecar: tables in which captions stand; None: there are none.
        folder: where they are joined with the shards, see ``clipfast.data.sidecar.join``.

    Raises:
        ValueError: a pattern is malformed, or a shard is there twice under one name.
        OSError: a shard cannot be read.
    """
    paths = expand(patterns)
    fields = Fields(captions=tuple(captions))
    if sidecar is not None:
        fields = without_captions(fields)
    with ThreadPoolExecutor(min(_THREADS, len(paths))) as pool:
        known = list(pool.map(partial(identify, fields=fields), paths))
    shards = sorted(
        (
            Shard(path, each.samples, each.mark, tuple(captions))
            for path, each in zip(paths, known, strict=True)
        ),
        key=lambda shard: shard.part,
    )
    for one, other in pairwise(shards):
        if one.part == other.part:
            raise ValueError(
                f"{one.path} and {other.path} have one name and one index: name one of them, or "
                "rename one where they differ"
            )
    if sidecar is None:
        return shards
    joined = join(sidecar, [shard.path for shard in shards], fields, folder)
    told = [
        Told(joined.path, number, known.captions, sidecar.missing == "own")
        for number, known in enumerate(joined.shards)
    ]
    return [replace(shard, told=each) for shard, each in zip(shards, told, strict=True)]


def captions(shard: Shard) -> Iterator[list[str]]:
    """The captions of each sample of a shard, in order; none where it has none or they are no text.

    Args:
        shard: of which.

    Raises:
        ValueError: the shard or its index is not what it was.
        OSError: it cannot be read.
    """
    table, fields = shard.table(), shard.fields
    known: list[list[str]] = []
    wanted = np.ones(len(table), bool)
    if shard.told:
        known = _told(shard.told, len(table))
        wanted = np.array([not texts for texts in known]) & (table.caption_offset > 0)
        wanted &= shard.told.own
    own = members(shard, table.caption_offset[wanted], table.caption_size[wanted])
    for row in range(len(table)):
        if not wanted[row]:
            yield known[row]
            continue
        try:
            yield fields.texts(next(own), table.caption)
        except ValueError:
            yield []


def _told(told: Told, samples: int) -> list[list[str]]:
    joined = Joined(told.joined)
    if joined.shards[told.number].captions != told.digest:
        raise ValueError(f"{told.joined} has other captions than at the start: run again")
    return [joined.texts(told.number, row) for row in range(samples)]


def images(shard: Shard) -> Iterator[bytes]:
    """The image files of a shard in order; raises as ``captions`` does.

    Args:
        shard: of which.
    """
    table = shard.table()
    return members(shard, table.image_offset, table.image_size)


def members(shard: Shard, offsets: np.ndarray, sizes: np.ndarray) -> Iterator[bytes]:
    """Members in the order asked for: a batch is read while the one before is worked on.

    Args:
        shard: of which.
        offsets: [N] int64, bytes from the start of the tar.
        sizes: [N] bytes.

    Raises:
        ValueError: the shard ends before.
        OSError: it cannot be read.
    """
    with storage_of(shard.path).open(shard.path) as reader:
        under_way: deque[tuple[list[tuple[int, int]], Callable[[], list[bytes]]]] = deque()
        for ranges in _batches(offsets, sizes):
            under_way.append((ranges, reader.start_many(ranges)))
            if len(under_way) > 1:
                yield from _finished(shard, *under_way.popleft())
        while under_way:
            yield from _finished(shard, *under_way.popleft())


def _batches(offsets: np.ndarray, sizes: np.ndarray) -> Iterator[list[tuple[int, int]]]:
    batch: list[tuple[int, int]] = []
    room = _BATCH_BYTES
    for offset, size in zip(offsets.tolist(), sizes.tolist(), strict=True):
        if batch and (size > room or len(batch) == _BATCH_MEMBERS):
            yield batch
            batch, room = [], _BATCH_BYTES
        batch.append((offset, size))
        room -= size
    if batch:
        yield batch


def _finished(
    shard: Shard, ranges: list[tuple[int, int]], wait: Callable[[], list[bytes]]
) -> list[bytes]:
    found = wait()
    for (offset, size), data in zip(ranges, found, strict=True):
        check_length(data, offset, size, shard.path)
    return found
