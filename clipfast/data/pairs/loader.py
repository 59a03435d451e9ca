"""Batches of pictures and their distortions, in the order and with the state of other loaders."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from clipfast.data.batch import ImageTextBatch
from clipfast.data.encoded import EncodedBatch
from clipfast.data.loader import EvalLoader, TrainLoader
from clipfast.data.pairs.decoder import PairDecoder
from clipfast.data.pixels import normalised
from clipfast.devices import to_device


class TrainPairLoader(TrainLoader):
    """A ``TrainLoader`` whose batches have the distorted picture in the place of the caption:
    `tokens` is ``[B, 3, S, S]`` like `images`, and `lengths` is 1.

    Captions of the shards are passed over. So is the random square of a ``TrainLoader``: the first
    picture is the whole one (``squashed``), and the crop belongs to the distortions.

    Args:
        args: see `TrainLoader`.
        options: see `TrainLoader`; `scale` and `decode` change nothing.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **{**options, "decode": "exact"})

    def caption_tokens(self) -> int:
        """There are none."""
        return 1

    def _decoder(self, source: Iterator[EncodedBatch], batch_size: int) -> Any:
        return PairDecoder(
            source,
            self.reader,
            self.image_size,
            self.order.seed,
            self.threads,
            self._substitutes,
        )

    def _finish(self, encoded: EncodedBatch, crops: Tensor) -> ImageTextBatch:
        return _pairs(super()._finish(encoded, crops[:, 0].contiguous()), crops[:, 1])


class EvalPairLoader(EvalLoader):
    """An ``EvalLoader`` likewise. A distortion is the same on every pass."""

    def _decoder(self, source: Iterator[EncodedBatch], batch_size: int) -> Any:
        return PairDecoder(source, self.reader, self.image_size, 0, self.threads)

    def _finish(self, encoded: EncodedBatch, crops: Tensor) -> ImageTextBatch:
        batch = _pairs(super()._finish(encoded, crops[:, 0].contiguous()), crops[:, 1])
        if batch.content is None:
            return batch
        # Equal pictures match, whatever is written below them; and a picture has one distortion.
        every = None if batch.every is None else [captions[:1] for captions in batch.every]
        return replace(batch, content=batch.content[:, :1].expand(-1, 2), every=every)


def _pairs(batch: ImageTextBatch, distorted: Tensor) -> ImageTextBatch:
    device, dtype = batch.images.device, batch.images.dtype
    return replace(
        batch,
        tokens=normalised(to_device(distorted.contiguous(), device), dtype),
        lengths=torch.ones_like(batch.lengths),
    )
