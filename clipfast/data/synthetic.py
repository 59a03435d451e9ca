"""Batches without data, decoder or tokenizer, to measure a step with."""

import itertools
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from clipfast.arguments import whole_number
from clipfast.data.arguments import (
    MOST_PIXELS_PER_SIDE,
    check_batch,
    check_device,
    check_dtype,
    check_micro_batch,
    check_place,
    check_position,
)
from clipfast.data.batch import ImageTextBatch
from clipfast.data.encoded import Skipped
from clipfast.data.parted import PartedBatch
from clipfast.data.pixels import normalised
from clipfast.data.random_pairs import WEB_MEAN, generator_of, random_captions, random_crops
from clipfast.data.synthetic_name import MOST_SAMPLES, SYNTHETIC

# A mean over many captions; a tenth more for the batches above it.
_GENEROUS = 1.1
_IMAGES, _TOKENS, _ORDER = range(3)  # keep the random streams of one batch apart
# Images that are drawn together: any micro-batch is cut from whole draws.
_DRAWN = 8


class SyntheticLoader:
    """An endless stream of random batches, in the place of a ``TrainLoader``.

    Images are random bytes, normalised; captions are random tokens of web-like lengths
    (``clipfast.data.random_pairs``). A batch depends on seed, epoch, its number, the rank, the
    number of ranks and the kind of device alone, so that a run repeats itself and goes on exactly.
    An epoch counts samples and nothing more: no batch comes again.

    Args:
        samples: of an epoch.
        image_size: side of the square, pixels.
        batch_size: the global batch, over all ranks; divides by their number.
        rank: this rank.
        world_size: number of ranks.
        seed: of all that is made.
        device: where batches are made.
        dtype: of the images.
        micro_batch: M, pairs whose images are made at a time, when ``batch.parts(share // M)`` is
            asked for them; divides a rank's share. The batch is the same. None: the whole share.

    Raises:
        TypeError: an argument is of another kind; a ``ValueError`` too.
        ValueError: an argument is out of its range, or an epoch is less than one global batch.
    """

    def __init__(
        self,
        samples: int,
        image_size: int,
        batch_size: int,
        *,
        rank: int = 0,
        world_size: int = 1,
        seed: int = 0,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        micro_batch: int | None = None,
    ) -> None:
        self.samples = whole_number("samples", samples, 1, MOST_SAMPLES)
        self.image_size = whole_number("image_size", image_size, 1, MOST_PIXELS_PER_SIDE)
        self.batch_size = whole_number("batch_size", batch_size, 1)
        self.rank, self.world_size = check_place(rank, world_size)
        self.seed = whole_number("seed", seed, 0, 2**63 - 1)
        self.device = check_device(device)
        self.dtype = check_dtype(dtype)
        if self.batch_size % self.world_size:
            raise ValueError(
                f"batch size {self.batch_size} does not divide by {self.world_size} ranks"
            )
        self.batches_per_epoch = self.samples // self.batch_size
        if self.batches_per_epoch == 0:
            raise ValueError(
                f"{self.samples} synthetic samples are less than one global batch of "
                f"{self.batch_size}: pass '{SYNTHETIC}:N' with more, or a smaller --batch-size"
            )
        self._local_batch = self.batch_size // self.world_size
        self.micro_batch = check_micro_batch(micro_batch, self._local_batch)
        check_batch(self.micro_batch, self.image_size, self.dtype, self.device)
        self._consumed = 0

    @property
    def contents(self) -> str:
        """What there is, for a person."""
        return f"{self.samples} synthetic pairs"

    @property
    def skipped(self) -> list[Skipped]:
        """Nothing is broken here."""
        return []

    def learn(self, skipped: Iterable[Skipped]) -> None:
        """Nothing is left out here."""

    def source_samples(self) -> dict[str, int]:
        """Nothing: there are no sources."""
        return {}

    def caption_tokens(self) -> int:
        """The mean length of a caption, a tenth added: batches differ."""
        return round(_GENEROUS * WEB_MEAN)

    def __iter__(self) -> Iterator[ImageTextBatch]:
        """Batches from where the loader stands, without end."""
        for number in itertools.count(self._consumed):
            epoch, index = divmod(number, self.batches_per_epoch)
            batch = self._make(epoch, index)
            self._consumed = number + 1
            yield batch

    def state_dict(self) -> dict[str, Any]:
        """Where the stream stands, and what that depends on."""
        epoch, index = divmod(self._consumed, self.batches_per_epoch)
        return {"epoch": epoch, "index": index, **self._identity()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue after the batches that a saved state had handed out.

        Raises:
            ValueError: data, batch size or seed changed, so the position has no meaning.
        """
        check_position(state, self._identity())
        self._consumed = state["epoch"] * self.batches_per_epoch + state["index"]

    def _identity(self) -> dict[str, Any]:
        return {
            "shards": SYNTHETIC,
            "samples": self.samples,
            "batch_size": self.batch_size,
            "seed": self.seed,
        }

    def _make(self, epoch: int, index: int) -> ImageTextBatch:
        place = (self.seed, epoch, index, self.rank, self.world_size)
        start = index * self.batch_size + self.rank * self._local_batch
        tokens, lengths = random_captions(
            self._local_batch,
            generator_of(self.device, *place, _TOKENS),
            generator_of(torch.device("cpu"), *place, _ORDER),
        )

        def make(m: int) -> ImageTextBatch:
            rows = slice(m * self.micro_batch, (m + 1) * self.micro_batch)
            own = lengths[rows]
            return ImageTextBatch(
                images=self._images(place, rows.start, rows.stop),
                tokens=tokens[rows, : int(own.max())],
                lengths=own,
                epoch=epoch,
                index=index,
                shard=np.zeros(self.micro_batch, np.int64),
                row=np.arange(start + rows.start, start + rows.stop),
            )

        if self.micro_batch == self._local_batch:
            return make(0)
        count = self._local_batch // self.micro_batch
        return PartedBatch(count, make, lambda passes: None, epoch, index)

    def _images(self, place: tuple[int, ...], start: int, stop: int) -> Tensor:
        """Images [start, stop) of a share, cut from the draws that they lie in."""
        first, last = start // _DRAWN, -(-stop // _DRAWN)
        crops = [
            random_crops(_DRAWN, self.image_size, generator_of(self.device, *place, _IMAGES, block))
            for block in range(first, last)
        ]
        rows = torch.cat(crops)[start - first * _DRAWN : stop - first * _DRAWN]
        return normalised(rows, self.dtype)
