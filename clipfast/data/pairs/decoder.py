"""Encoded pictures in, two views of each out, made by threads."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import torch

from clipfast.data.decode import DecodedBatch, NamesBroken, Settles
from clipfast.data.encoded import EncodedBatch, Request
from clipfast.data.pairs.views import two_views
from clipfast.data.rgb import open_rgb

# Batches under way at a time.
_AHEAD = 2
# Keeps these random numbers apart from those of order and captions.
_STREAM = 0x9A125


@dataclass
class _Underway:
    encoded: EncodedBatch
    views: list[Future[np.ndarray]]


class PairDecoder:
    """Decodes a stream of batches with Pillow and distorts what comes.

    A view depends on the seed, the epoch and the place of its sample in the shards alone. So a
    batch is the same on any number of ranks and threads, after a resume, and when it is decoded
    once more.

    Args:
        source: batches in order.
        reader: names a broken sample.
        image_size: S, pixels.
        seed: of the distortions.
        threads: of the CPU.
        substitutes: replace broken samples; without them one is an error.
    """

    def __init__(
        self,
        source: Iterator[EncodedBatch],
        reader: NamesBroken,
        image_size: int,
        seed: int,
        threads: int,
        substitutes: Settles | None = None,
    ) -> None:
        self._source = source
        self._reader = reader
        self._size = image_size
        self._seed = seed
        self._substitutes = substitutes
        self._underway: deque[_Underway] = deque()
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="clipfast-pairs")

    def __iter__(self) -> PairDecoder:
        return self

    def __next__(self) -> DecodedBatch:
        while len(self._underway) < _AHEAD:
            encoded = next(self._source, None)
            if encoded is None:
                break
            self._underway.append(self._begin(self._settled(encoded)))
        if not self._underway:
            raise StopIteration
        batch = self._underway.popleft()
        while True:
            # A sample that was found to be broken since may stand in it.
            settled = self._settled(batch.encoded)
            if settled is batch.encoded:
                faults = self._faults(batch)
                if not faults:
                    break
                settled = self._settled(replace(settled, faults=faults))
            batch = self._begin(settled)
        views = np.stack([view.result() for view in batch.views])
        return DecodedBatch(torch.from_numpy(views), batch.encoded)

    def close(self) -> None:
        """End the threads; what is under way is abandoned."""
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._underway.clear()

    def _settled(self, encoded: EncodedBatch) -> EncodedBatch:
        return encoded if self._substitutes is None else self._substitutes.settle(encoded)

    def _begin(self, encoded: EncodedBatch) -> _Underway:
        request = encoded.request
        views = [
            self._pool.submit(self._views, image, request, i)
            for i, image in enumerate(encoded.images)
        ]
        return _Underway(encoded, views)

    def _views(self, image: np.ndarray, request: Request, i: int) -> np.ndarray:
        place = (int(request.samples.shard[i]), int(request.samples.row[i]))
        rng = np.random.default_rng([_STREAM, self._seed, request.epoch, *place])
        return two_views(open_rgb(image.tobytes()), self._size, rng)

    def _faults(self, batch: _Underway) -> dict[int, str]:
        """Why pictures of a batch do not decode, by their rows.

        Raises:
            ValueError: one does not, and nothing replaces it.
        """
        found = {i: error for i, each in enumerate(batch.views) if (error := each.exception())}
        faults = {i: f"image does not decode: {error}"[:200] for i, error in found.items()}
        if faults and self._substitutes is None:
            samples, (i, reason) = batch.encoded.request.samples, next(iter(faults.items()))
            raise self._reader.broken(int(samples.shard[i]), int(samples.row[i]), reason)
        return faults
