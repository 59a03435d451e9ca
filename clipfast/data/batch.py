"""What a run trains on: a batch, and what the engine asks of whatever hands them out."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
from torch import Tensor

from clipfast.data.encoded import Skipped


@dataclass(frozen=True)
class ImageTextBatch:
    """One rank's share of a global batch.

    Attributes:
        images: ``[B, 3, S, S]`` in channels_last, normalised, on the loader's device.
        tokens: ``[B, L]`` int64 on the loader's device; L is the longest caption of this share. Of
            pairs of pictures (``clipfast.data.pairs``) the other picture, as `images`.
        lengths: ``[B]`` int64 on the CPU, tokens up to and including end-of-text; ones then.
        epoch: from 0.
        index: number of the global batch in its epoch.
        shard: ``[B]`` int64, where each sample came from.
        row: ``[B]`` int64, its row in that shard.
        content: ``[B, 2]`` int64 on the CPU: an id of the picture's file, and one of the caption's
            words, equal where they are equal. From `EvalLoader` alone.
        every: all captions of each sample, the one of `tokens` first. From `EvalLoader` alone.
        skipped: broken samples that were met on the way to this batch, where they are left out.
    """

    images: Tensor
    tokens: Tensor
    lengths: Tensor
    epoch: int
    index: int
    shard: np.ndarray
    row: np.ndarray
    content: Tensor | None = None
    every: list[list[str]] | None = None
    skipped: tuple[Skipped, ...] = ()

    def parts(self, count: int, passes: int | None = None) -> "Sequence[ImageTextBatch]":
        """The micro-batches of this share, in order.

        Args:
            count: k, divides B.
            passes: how often each will be asked for, so that a loader that decodes by micro-batch
                can give it up then and go on with the next batch. None: any number of times.

        Returns:
            k batches, each decoded when it is asked for where the loader knows its micro-batch
            (``TrainLoader``). One that is asked for again has the same pixels.

        Raises:
            ValueError: `count` does not divide the share.
        """
        size, rest = divmod(len(self.lengths), count)
        if rest:
            raise ValueError(f"{len(self.lengths)} pairs do not divide into {count} micro-batches")
        if count == 1:
            return [self]
        return [self._part(slice(m * size, (m + 1) * size)) for m in range(count)]

    def _part(self, rows: slice) -> "ImageTextBatch":
        return replace(
            self,
            images=self.images[rows],
            tokens=self.tokens[rows],
            lengths=self.lengths[rows],
            shard=self.shard[rows],
            row=self.row[rows],
            content=None if self.content is None else self.content[rows],
            every=None if self.every is None else self.every[rows],
            skipped=(),
        )


class TrainingData(Protocol):
    """An endless stream of batches that can stop and go on: ``TrainLoader`` or ``SyntheticLoader``.

    Attributes:
        batches_per_epoch: global batches in one pass.
        contents: what there is, for a person.
        skipped: the broken samples that were left out so far, each once.
    """

    batches_per_epoch: int

    @property
    def contents(self) -> str: ...

    @property
    def skipped(self) -> list[Skipped]: ...

    def learn(self, skipped: Iterable[Skipped]) -> None:
        """Leave out samples too that another rank has met."""

    def source_samples(self) -> dict[str, int]:
        """Samples of each named source that were handed out since the beginning, over all ranks."""

    def caption_tokens(self) -> int:
        """The mean length of a caption in tokens, start and end included, a tenth added: batches
        differ."""

    def __iter__(self) -> Iterator[ImageTextBatch]: ...

    def state_dict(self) -> dict[str, Any]:
        """Where the stream stands, and what that depends on."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue after the batches that a saved state had handed out.

        Raises:
            ValueError: the position has no meaning here.
        """
