"""Features before the last projection of an image tower, which probes are fitted to.

The paper takes "the features before the linear projection to the embedding space". In a ViT that is
the class token behind the last layer norm. In a ResNet the projection is the last product of the
attention pooling, so it is the pooled heads before that product, 32 times as wide as the stem.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor, nn

from clipfast.models import CLIP, AttentionPool2d
from clipfast.models.attention_pool import attention_pool
from clipfast.models.resnet import ModifiedResNet
from clipfast.models.vit import VisionTransformer

T = TypeVar("T")


def penultimate(
    model: CLIP, images: Tensor, encode: Callable[[Tensor], object] | None = None
) -> Tensor:
    """Features before the projection.

        ViT:     ln_post(transformer(t)[0])
        ResNet:  [head_1 ... head_n] of the attention pooling

    Args:
        model: in evaluation mode.
        images: ``[B, 3, S, S]``, normalised, on the model's device.
        encode: runs the image tower where that is not ``model.encode_image``, such as the engine
            of a run.

    Returns:
        ``[B, C]``: the width of a ViT's token, or of a ResNet's last stage.

    Raises:
        ValueError: the image tower is of another kind.

    Source: Radford et al. 2021, appendix A.3.
    """
    return _found(model, images, encode or model.encode_image)[1]


def has_penultimate(model: CLIP) -> bool:
    """Whether the image tower is one whose features before its projection are known.

    Args:
        model: any.
    """
    return isinstance(model.visual, VisionTransformer | ModifiedResNet)


def both(model: CLIP, images: Tensor) -> tuple[Tensor, Tensor]:
    """Features behind the projection and before it, of one pass through the tower.

    Args:
        model: in evaluation mode.
        images: see ``penultimate``.

    Returns:
        What ``model.encode_image`` gives, and what ``penultimate`` gives.

    Raises:
        ValueError: see ``penultimate``.
    """
    return _found(model, images, model.encode_image)


def _found(model: CLIP, images: Tensor, encode: Callable[[Tensor], T]) -> tuple[T, Tensor]:
    visual = model.visual
    if isinstance(visual, VisionTransformer):
        return _caught(encode, images, visual.ln_post, lambda given, made: made)
    if isinstance(visual, ModifiedResNet):
        pool = visual.attnpool
        return _caught(encode, images, pool, lambda given, made: _heads(pool, given))
    raise ValueError(
        f"the image tower {type(visual).__name__} does not tell which features come before its "
        "projection: ask for layer='projected'"
    )


def _caught(
    encode: Callable[[Tensor], T],
    images: Tensor,
    module: nn.Module,
    take: Callable[[Tensor, Tensor], Tensor],
) -> tuple[T, Tensor]:
    """What the tower gives, and what `take` makes of a module's argument and result in it."""
    found: list[Tensor] = []

    def catch(_: nn.Module, given: tuple[Tensor, ...], made: Tensor) -> None:
        found.append(take(given[0], made))

    # Before the hook with which ZeRO-3 lets go of the module's weights.
    handle = module.register_forward_hook(catch, prepend=True)
    try:
        features = encode(images)
    finally:
        handle.remove()
    return features, found[0]


def _heads(pool: AttentionPool2d, x: Tensor) -> Tensor:
    q, k, v = pool.q_proj, pool.k_proj, pool.v_proj
    return attention_pool(
        *(x, pool.positional_embedding),
        *(q.weight, q.bias, k.weight, k.bias, v.weight, v.bias),
        c_weight=torch.eye(pool.embed_dim, dtype=q.weight.dtype, device=q.weight.device),
        c_bias=None,
        num_heads=pool.num_heads,
    )
