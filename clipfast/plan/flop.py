"""Floating-point operations of a step, by part: torch's counter on the run's own modules.

A multiplication and an addition are two. What recomputation computes again is in the backward
passes; the plain model's FLOP, by which utilisation is defined, leaves it out.
"""

from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import cast

import torch
from torch import Tensor

from clipfast.models import Architecture
from clipfast.models.fake import fake_pass
from clipfast.models.flop import count_flop
from clipfast.models.recompute import Mode

# Of every pair alike, so a few say it.
_PAIRS = 4


@dataclass(frozen=True)
class PassFlop:
    """FLOP of one pair in each pass.

    Attributes:
        text_forward, image_forward, text_backward, image_backward: of the towers.
    """

    text_forward: float
    image_forward: float
    text_backward: float
    image_backward: float

    @property
    def forward(self) -> float:
        """Of both towers."""
        return self.text_forward + self.image_forward

    @property
    def backward(self) -> float:
        """Of both towers, with what is computed again."""
        return self.text_backward + self.image_backward


def pass_flop(architecture: Architecture, caption_tokens: int, recompute: str = "none") -> PassFlop:
    """Count the towers' FLOP for one pair.

    Args:
        architecture: of the model; its own mode is not looked at.
        caption_tokens: of every caption, start and end included.
        recompute: what the backward pass computes again.
    """
    return _count(replace(architecture, recompute=cast(Mode, recompute)), caption_tokens)


def pair_flop(architecture: Architecture, caption_tokens: int, global_batch: int) -> float:
    """FLOP of one pair's share of a step with nothing computed twice: towers and 6 G D of the loss.

    Args:
        architecture: of the model.
        caption_tokens: of every caption, start and end included.
        global_batch: G.
    """
    towers = pass_flop(architecture, caption_tokens)
    return towers.forward + towers.backward + loss_flop(global_batch, architecture.embed_dim, 6)


def loss_flop(global_batch: int, width: int, products: int) -> float:
    """FLOP of one pair's share of the loss.

    Args:
        global_batch: G.
        width: D.
        products: 6 where logits are kept for the backward pass, 8 where they are computed again.
    """
    return float(products) * global_batch * width


@lru_cache
def _count(architecture: Architecture, caption_tokens: int) -> PassFlop:
    # The type makes no difference to the number of operations.
    pass_ = fake_pass(architecture, _PAIRS, torch.float32, caption_tokens, torch.device("cpu"))
    with pass_ as towers:
        text, text_forward = count_flop(towers.encode_text)
        images, image_forward = count_flop(towers.encode_image)
        backward = [count_flop(partial(_backward, features))[1] for features in (text, images)]
    return PassFlop(*(n / _PAIRS for n in (text_forward, image_forward, *backward)))


def _backward(features: Tensor) -> None:
    features.sum().backward()
