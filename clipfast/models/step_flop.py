"""Floating-point operations that a training step of a model needs, whatever computes it.

Forward and backward of both towers and the loss. Nothing that is computed again counts, nor the
padding of captions: that is what makes a utilisation of it comparable from run to run.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from clipfast.models.architecture import Architecture
from clipfast.models.clip import CLIP
from clipfast.models.flop import count_flop


def pair_flop(architecture: Architecture, lengths: Tensor, batch: int) -> float:
    """FLOP of one pair's share of a step.

        F = image + text + 6 G D

    The loss takes 6 G^2 D for all G pairs: logits, and two products for the gradients. Without a
    text tower the other side of a pair is an image too.

    Args:
        architecture: of the model.
        lengths: ``[B]``, tokens of some captions, start and end included.
        batch: G, pairs in the global batch.

    Returns:
        The mean over those captions.
    """
    loss = 6.0 * batch * architecture.embed_dim
    text = architecture.text
    if text is None:
        return 2 * image_flop(architecture) + loss
    of_captions = text_flop(text.width, text.layers, architecture.embed_dim, lengths)
    return image_flop(architecture) + of_captions / len(lengths) + loss


@lru_cache
def image_flop(architecture: Architecture) -> float:
    """FLOP of one image, forward and backward, counted on tensors without memory.

    Args:
        architecture: of the model; what it computes again is left out.
    """
    with FakeTensorMode():
        model = CLIP(replace(architecture, recompute="none"))
        size = architecture.vision.image_size
        images = torch.empty(2, 3, size, size).contiguous(memory_format=torch.channels_last)
        _, flop = count_flop(lambda: model.encode_image(images).sum().backward())
    return flop / 2


def text_flop(width: int, layers: int, embed_dim: int, lengths: Tensor) -> float:
    """FLOP of packed captions, forward and backward, which is three times as much.

    With T tokens of B captions and C channels: 24 C^2 T in a block and 2 C for each token that a
    token sees, twice; in the last block keys and values of all tokens, 4 C^2 T, and all else of B.

    Args:
        width: C.
        layers: blocks of the text tower.
        embed_dim: D.
        lengths: ``[B]``, tokens of each caption.
    """
    tokens, batch = float(lengths.sum()), len(lengths)
    pairs = float((lengths.double() * (lengths.double() + 1) / 2).sum())
    whole = (layers - 1) * (24 * width**2 * tokens + 4 * width * pairs)
    last = 4 * width**2 * tokens + 20 * width**2 * batch + 4 * width * tokens
    return 3 * (whole + last + 2 * width * embed_dim * batch)
