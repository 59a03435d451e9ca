"""Batches without data, decoder or tokenizer, to measure a step with."""

import itertools
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch

from clipfast.arguments import whole_number
from clipfast.data.arguments import (
    MOST_PIXELS_PER_SIDE,
    check_batch,
    check_device,
    check_dtype,
    check_place,
)
from clipfast.data.batch import ImageTextBatch
from clipfast.data.encoded import Skipped
from clipfast.data.random_pairs import WEB_MEAN, generator_of, random_captions, random_images
from clipfast.data.synthetic_name import MOST_SAMPLES, SYNTHETIC

# A mean over many captions; a tenth more for the batches above it.
_GENEROUS = 1.1
_IMAGES, _TOKENS, _ORDER = range(3)  # keep the random streams of one batch apart


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
        check_batch(self._local_batch, self.image_size, self.dtype, self.device)
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
        changed = [
            f"{name} was {state.get(name)}, is {value}"
            for name, value in self._identity().items()
            if state.get(name) != value
        ]
        if changed:
            raise ValueError(
                "the saved position in the data does not fit this run: "
                + "; ".join(changed)
                + ". Resume with the same settings, or start a new run from its weights"
            )
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
        return ImageTextBatch(
            images=random_images(
                self._local_batch,
                self.image_size,
                self.dtype,
                generator_of(self.device, *place, _IMAGES),
            ),
            tokens=tokens,
            lengths=lengths,
            epoch=epoch,
            index=index,
            shard=np.zeros(self._local_batch, np.int64),
            row=np.arange(start, start + self._local_batch),
        )
