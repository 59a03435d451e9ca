"""FLOP and bytes that a row's work needs at least, from its shapes; and the time they take at best.

A multiplication and an addition are two. Products, convolutions and attention count, and bytes that
have to pass between memory and the processor once: what is read, what is written, and no cache in
between.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import torch

from benchmarks.attention_pool import POOLS
from benchmarks.parts.adamw.contenders import CONTENDERS
from benchmarks.parts.adamw.problem import shapes_of
from benchmarks.parts.common.captions import make_captions
from clipfast.models import Architecture, create_model
from clipfast.models.flop import pool_flop
from clipfast.models.step_flop import image_flop, text_flop

# A bf16 product of 8,192^3 on an H200 (benchmarks/NOTES.md), and what the H100's data sheet has the
# other types do beside it: TF32 half of bf16's 989, fp32 66.9 TFLOP/s.
_BF16 = 790e12
FLOP_PER_S = {
    "bf16": _BF16,
    "fp16": _BF16,
    "tf32": _BF16 / 2,
    "fp32": _BF16 * 66.9 / 989.4,
}
BYTES_PER_S = {"H100": 3.0e12, "H200": 4.3e12}
SIZES = {"fp32": 4, "tf32": 4, "bf16": 2, "fp16": 2}


@dataclass(frozen=True)
class Work:
    """Work whose products and traffic may overlap.

    Attributes:
        flop: Of its products, in the type of the row.
        bytes: Read and written.
    """

    flop: float
    bytes: float

    def floor_ms(self, card: str, dtype: str | None) -> float:
        """Milliseconds of whichever takes longer at its full rate."""
        rate = FLOP_PER_S[dtype or "fp32"]
        return 1e3 * max(self.flop / rate, self.bytes / BYTES_PER_S[card])


def product(size: int, dtype: str) -> Work:
    """A square product."""
    return Work(2.0 * size**3, 3.0 * size**2 * SIZES[dtype])


def loss(batch: int, dim: int, dtype: str, bgd: int, is_kept: bool) -> Work:
    """The loss and its gradients on one process.

    Args:
        batch: G.
        dim: D.
        dtype: Of the features.
        bgd: FLOP in units of G^2 D: 8 recomputed, 6 kept, 12 OpenCLIP's (logits and their
            transpose, two products backward for each).
        is_kept: Whether all logits are written and read once, in two bytes each.
    """
    features = 4.0 * batch * dim * SIZES[dtype]  # both read, both gradients written
    return Work(float(bgd) * batch**2 * dim, features + 4.0 * batch**2 * is_kept)


def pool(name: str, batch: int, dtype: str) -> Work:
    """Attention pooling: the map read twice and its gradient written, weights likewise."""
    side, channels, heads, width = POOLS[name]
    tokens = side * side
    weights = 3 * channels**2 + channels * width
    elements = batch * tokens * channels + weights
    # The projection of the answer, which the pool's own count leaves out.
    projection = 3 * 2 * batch * channels * width
    flop = pool_flop(batch, tokens, channels, heads) + projection
    return Work(float(flop), 3.0 * elements * SIZES[dtype])


@lru_cache
def elements_of(name: str, flat: int) -> int:
    """Parameters of a list of ``adamw.py``."""
    return sum(map(math.prod, shapes_of(name, flat)))


def adamw(contender: str, name: str, flat: int) -> Work:
    """An optimizer's step: memory alone."""
    return Work(0.0, CONTENDERS[contender].bytes_per_element * elements_of(name, flat))


def text_tower(width: int, layers: int, embed: int, batch: int, source: str) -> Work:
    """The text tower alone: its products; fp32 weights read twice, their gradients written."""
    lengths = make_captions(source, batch).lengths
    weights = layers * 12 * width**2
    return Work(text_flop(width, layers, embed, lengths), 4.0 * 3 * weights)


@lru_cache
def config_of(model: str) -> Architecture:
    """A model's configuration."""
    with torch.device("meta"):
        return create_model(model).config


@lru_cache
def parameters_of(model: str) -> int:
    """Its parameters."""
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in create_model(model).parameters())


def step(model: str, batch: int, captions: str) -> tuple[Work, Work]:
    """A training step: both towers and the loss; then torch's fused AdamW on fp32 weights."""
    config = config_of(model)
    text = config.text
    lengths = make_captions(captions, batch).lengths
    flop = batch * image_flop(config)
    flop += text_flop(text.width, text.layers, config.embed_dim, lengths)
    flop += 8 * batch**2 * config.embed_dim
    parameters = parameters_of(model)
    update = CONTENDERS["torch-fused"].bytes_per_element * parameters
    # Weights read twice, gradients written.
    return Work(flop, 12.0 * parameters), Work(0.0, update)
