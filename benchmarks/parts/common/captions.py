"""Batches of caption tokens whose lengths are those of real captions.

Where only the tokens up to end-of-text are computed, the lengths decide the time. Two sources:

    sample   the captions of the embedded sample, tokenized
    web      random tokens; lengths log-normal with mean 20 and deviation 0.6 of the logarithm,
             rounded, and clipped to 3 ... 77 (start, one token, end; the context): median 17, one
             caption in twenty above 44

A batch takes its lengths at evenly spaced quantiles, in random order, so that one of 16 already has
the distribution's mean and the time does not depend on the luck of the draw.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

import clipfast.data
from clipfast.data.random_pairs import web_lengths
from clipfast.data.reader import ShardReader
from clipfast.tokenizer import CONTEXT_LENGTH, END_OF_TEXT, START_OF_TEXT, tokenize_with_lengths

SAMPLE = Path(clipfast.data.__file__).parent / "sample"
SOURCES = ("sample", "web")


@dataclass(frozen=True)
class Captions:
    """One batch of captions.

    Attributes:
        source: ``sample`` or ``web``.
        tokens: ``[B, 77]`` int64, zeros after end-of-text.
        lengths: ``[B]`` int64 on the CPU: tokens up to and including end-of-text.
    """

    source: str
    tokens: Tensor
    lengths: Tensor

    @property
    def cut_tokens(self) -> Tensor:
        """``[B, L]``, cut to the longest caption, as clipfast's loader gives them."""
        return self.tokens[:, : int(self.lengths.max())].contiguous()

    @property
    def fields(self) -> dict[str, str | float | int]:
        """What a row says of them."""
        return {
            "captions": self.source,
            "mean_length": round(self.lengths.double().mean().item(), 2),
            "max_length": int(self.lengths.max()),
        }


def make_captions(
    source: str, batch: int, *, device: str | torch.device = "cpu", seed: int = 0
) -> Captions:
    """A batch of captions.

    Args:
        source: ``sample`` or ``web``.
        batch: Number of captions B.
        device: Where the tokens are.
        seed: Of the order of lengths, and of random tokens.

    Raises:
        ValueError: there is no such source.
    """
    if source not in SOURCES:
        raise ValueError(f"captions: expected one of {', '.join(SOURCES)}, got {source!r}")
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(batch, generator=generator)
    quantiles = (torch.arange(batch, dtype=torch.float64) + 0.5) / batch
    if source == "sample":
        captions = _sample_captions()
        texts = [captions[int(q * len(captions))] for q in quantiles[order].tolist()]
        tokens, lengths = tokenize_with_lengths(texts)
    else:
        lengths = web_lengths(quantiles)[order]
        tokens = torch.randint(1, START_OF_TEXT, (batch, CONTEXT_LENGTH), generator=generator)
        positions = torch.arange(CONTEXT_LENGTH)
        tokens[:, 0] = START_OF_TEXT
        tokens[positions == lengths[:, None] - 1] = END_OF_TEXT
        tokens[positions >= lengths[:, None]] = 0
    return Captions(source, tokens.to(device), lengths)


@functools.cache
def _sample_captions() -> list[str]:
    """All captions of the embedded sample, shortest first."""
    reader = ShardReader([str(path) for path in sorted(SAMPLE.glob("*.tar"))])
    captions = [
        reader.caption(shard, row)
        for shard in range(len(reader.shards))
        for row in range(len(reader.table(shard).keys()))
    ]
    lengths = tokenize_with_lengths(captions)[1].tolist()
    return [text for _, text in sorted(zip(lengths, captions, strict=True))]
