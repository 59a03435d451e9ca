"""Broken samples that a training run leaves out, and what stands in for each."""

import logging
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial

import numpy as np

from clipfast.data.encoded import EncodedBatch, Request, Skipped, encode
from clipfast.data.good_order import GoodOrder
from clipfast.data.order import SampleRefs
from clipfast.data.reader import ShardReader
from clipfast.data.reasons import Reasons

# So many are named one by one in an error; more are told by kinds.
_NAMED = 50

_log = logging.getLogger(__name__)


def log_skipped(skipped: Skipped) -> None:
    """Name a sample in the log of this module, as a warning."""
    _log.warning("left out: %s", skipped)


class Substitutes:
    """Puts the next good samples of the order in the place of broken ones.

    Args:
        reader: of the shards.
        order: of the good samples; learns here which are not.
        first: the first place of the global batch that is this rank's.
        most: broken samples that are borne with.
    """

    def __init__(self, reader: ShardReader, order: GoodOrder, first: int, most: int) -> None:
        self._reader = reader
        self._order = order
        self._first = first
        self._most = most
        self._known: dict[tuple[int, int], Skipped] = {}

    def request(self, epoch: int, index: int, crops: np.ndarray, part: int = 0) -> Request:
        """What a micro-batch of this rank's share of a global batch is made of, by what is known.

        Args:
            epoch: from 0.
            index: the batch's number in its epoch.
            crops: see ``Request``; all micro-batches have as many.
            part: number of the micro-batch.
        """
        first = self._first + part * len(crops)
        samples = self._order.samples(epoch, index, first, first + len(crops))
        return Request(samples, crops, epoch, index, known=self._order.known, part=part)

    def learn(self, skipped: Iterable[Skipped]) -> None:
        """Take samples for broken that were found in another place or run.

        Args:
            skipped: these samples.
        """
        for each in skipped:
            self._known.setdefault((each.shard, each.row), each)
            self._order.leave_out(each.shard, each.row)

    def settle(self, batch: EncodedBatch) -> EncodedBatch:
        """The batch without its faults, made of what the order holds by now.

        Args:
            batch: the next of the stream.

        Returns:
            A batch without faults; `skipped` has those that were found on its way.

        Raises:
            ValueError: too many samples are broken, all of them named.
        """
        while batch.faults or batch.request.known != self._order.known:
            found = [s for s in map(partial(self._left_out, batch), batch.faults) if s]
            asked = batch.request
            request = self.request(asked.epoch, asked.index, asked.crops, asked.part)
            moved = (request.samples.shard != asked.samples.shard) | (
                request.samples.row != asked.samples.row
            )
            batch = replace(batch, request=request, faults={}, skipped=(*batch.skipped, *found))
            if moved.any():
                batch = self._put(batch, np.flatnonzero(moved))
        return batch

    def _left_out(self, batch: EncodedBatch, i: int) -> Skipped | None:
        """The sample of a row, left out from now on; None where it was before."""
        samples = batch.request.samples
        shard, row = int(samples.shard[i]), int(samples.row[i])
        if (shard, row) in self._known:
            return None
        path, key = self._reader.shards[shard], self._reader.key(shard, row)
        skipped = Skipped(shard, row, path, key, batch.faults[i])
        self.learn([skipped])
        if len(self._known) > self._most:
            raise ValueError(too_many(list(self._known.values()), self._most))
        return skipped

    def _put(self, batch: EncodedBatch, rows: np.ndarray) -> EncodedBatch:
        """The batch with some rows read again, as its request now has them."""
        asked = batch.request
        samples = SampleRefs(asked.samples.shard[rows], asked.samples.row[rows])
        fresh = self._reader.fetch(samples, epoch=asked.epoch)
        images, captions = list(batch.images), list(batch.captions)
        fills = batch.fills.tolist()
        for i, row in enumerate(rows.tolist()):
            images[row], captions[row] = fresh.images[i], fresh.captions[i]
            fills[row] = fresh.fills[i]
        faults = {int(rows[i]): reason for i, reason in fresh.faults.items()}
        made = encode(asked, images, fills, captions, self._reader.context_length)
        return replace(made, faults=faults, skipped=batch.skipped)


def too_many(skipped: Sequence[Skipped], most: int) -> str:
    """The end of a run that has met too many broken samples.

    Args:
        skipped: all of them.
        most: that are borne with.
    """
    what = (
        f"{len(skipped):,} samples are broken, more than --data.max-errors {most:,}. Make an index "
        "that leaves them out, or raise the number"
    )
    if len(skipped) <= _NAMED:
        return "\n".join([what, *(f"    {each}" for each in skipped)])
    kinds = Reasons((f"{each.key} of {each.path}", each.reason) for each in skipped)
    return kinds.after(f"{what}. Each was named when it was left out; by kinds:")
