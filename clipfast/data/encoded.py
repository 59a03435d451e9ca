"""Batches on their way to the decoder: what is asked for, and what was read."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from torch import Tensor

from clipfast.data.order import SampleRefs
from clipfast.data.report import printable
from clipfast.tokenizer import tokenize_with_lengths

Fill = tuple[float, float]
WHOLE: Fill = (1.0, 1.0)


@dataclass(frozen=True)
class Skipped:
    """A broken sample that was left out.

    Attributes:
        shard: its shard, counted from 0.
        row: its row in that shard.
        path: of the shard.
        key: of the sample.
        reason: why.
    """

    shard: int
    row: int
    path: str
    key: str
    reason: str

    def __str__(self) -> str:
        return printable(f"sample '{self.key}' of shard {self.path}: {self.reason}")


@dataclass(frozen=True)
class Request:
    """What one batch is made of.

    Attributes:
        samples: B references.
        crops: ``[B, 3]`` float32: side of the square as a fraction of the short side, then the
            vertical and horizontal place of the square in what is left over, each in [0, 1].
        epoch: the epoch the batch belongs to.
        index: the batch's number in its epoch.
        known: number of broken samples that were known when this was asked for.
        part: number of the micro-batch in its rank's share.
    """

    samples: SampleRefs
    crops: np.ndarray
    epoch: int = 0
    index: int = 0
    known: int = 0
    part: int = 0


@dataclass(frozen=True)
class EncodedBatch:
    """Bytes of images and tokens of captions of one request.

    Attributes:
        request: what was asked for.
        images: B arrays uint8, each a whole image file.
        fills: ``[B, 2]`` float32: which part of a file's height and width the picture fills, from
            the upper left corner. It is 1 but for ``clipfast.data.scaled``.
        captions: B texts.
        tokens: ``[B, L]`` int64 on the CPU, cut to the longest caption.
        lengths: ``[B]`` int64, tokens up to and including end-of-text.
        content: ``[B, 2]`` int64, ids of picture and caption (``clipfast.data.content``), where
            they were asked for.
        every: with them, all captions of each sample.
        faults: why samples are broken, by their rows; they are not fit for the decoder.
        skipped: broken samples that were replaced.
    """

    request: Request
    images: list[np.ndarray]
    fills: np.ndarray
    captions: list[str]
    tokens: Tensor
    lengths: Tensor
    content: Tensor | None = None
    every: list[list[str]] | None = None
    faults: Mapping[int, str] = field(default_factory=dict)
    skipped: tuple[Skipped, ...] = ()

    @cached_property  # DALI reads it where it lies, as long as the batch is in flight
    def cuts(self) -> np.ndarray:
        """``[B, 5]`` float32: the crops of the request, then the fills."""
        return np.concatenate([self.request.crops, self.fills], axis=1)


def encode(
    request: Request,
    images: list[np.ndarray],
    fills: Sequence[Fill],
    captions: list[str],
    context_length: int,
) -> EncodedBatch:
    """Tokenize the captions of a batch.

    Args:
        request: what was asked for.
        images: B image files, as ``clipfast.data.prepare`` gives them.
        fills: B parts of their height and width; see ``EncodedBatch``.
        captions: B texts.
        context_length: tokens that a caption is cut to.
    """
    tokens, lengths = tokenize_with_lengths(captions, context_length)
    # Tokens after end-of-text change neither the loss nor a gradient: cut them off.
    parts = np.array(fills, np.float32).reshape(-1, 2)
    tokens = tokens[:, : int(lengths.max())]
    return EncodedBatch(request, images, parts, captions, tokens, lengths)
