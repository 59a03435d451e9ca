"""Counts floating-point operations: the plain model's, and those that a step really does.

A multiplication and an addition are two. Matrix products, convolutions and attention count; what is
computed element by element does not, nor do the few products inside the loss's own operator.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch.utils.flop_counter import (
    FlopCounterMode,
    sdpa_backward_flop_count,
    sdpa_flop_count,
)

import clipfast.ops.attention_pool
import clipfast.ops.products  # noqa: F401
from benchmarks.parts.common import peers
from benchmarks.parts.step.contenders import Case
from benchmarks.peers import import_open_clip


def model_flop(case: Case) -> int:
    """FLOP of a step of the plain model: forward and backward, tokens padded, nothing recomputed.

    Counted on OpenCLIP's own model without memory, where every product of a batch of two is seen,
    and scaled to the batch; the loss adds its 6 B^2 D.
    """
    open_clip = import_open_clip()
    config = peers.open_clip_config(case.model, **dict(case.overrides))
    with torch.device("meta"):
        model = open_clip.model.CLIP(**config)
        size = config["vision_cfg"]["image_size"]
        images = torch.empty(2, 3, size, size)
        tokens = torch.zeros(2, model.context_length, dtype=torch.long)
        with FlopCounterMode(display=False) as counter:
            image_features, text_features, _ = model(images, tokens)
            (image_features.sum() + text_features.sum()).backward()
    towers = counter.get_total_flops() * case.batch // 2
    return towers + 6 * case.batch**2 * config["embed_dim"]


def count_flop(run: Callable[[], Any]) -> tuple[Any, int]:
    """What a function returns, and the FLOP that it does.

    Under the counter nothing is compiled: what a compiled function does cannot be counted so.
    """
    aten = torch.ops.aten
    formulas = {
        # The CPU's attention, which torch does not count.
        aten._scaled_dot_product_flash_attention_for_cpu: (
            lambda q, k, v, *_, **__: sdpa_flop_count(q, k, v)
        ),
        aten._scaled_dot_product_flash_attention_for_cpu_backward: (
            lambda grad_out, q, k, v, *_, **__: sdpa_backward_flop_count(grad_out, q, k, v)
        ),
        torch.ops.clipfast.linear: _linear_flop,
        torch.ops.clipfast.linear_backward: _linear_backward_flop,
        torch.ops.clipfast.attention_pool: _pool_flop,
        torch.ops.clipfast.attention_pool_backward: _pool_backward_flop,
    }
    with FlopCounterMode(display=False, custom_mapping=formulas) as counter:
        result = run()
    return result, counter.get_total_flops()


def _linear_flop(x: list[int], weight: list[int], *_: Any, **__: Any) -> int:
    """One product of x's rows and a weight."""
    return 2 * math.prod(x) * weight[0]


def _linear_backward_flop(
    grad: list[int], x: list[int] | None, weight: list[int] | None, *_: Any, **__: Any
) -> int:
    """One for each gradient that is wanted."""
    return sum(2 * math.prod(grad) * given[-1] for given in (x, weight) if given is not None)


def _pool_flop(x: list[int], positions: list[int], *shapes: Any, **_: Any) -> int:
    """Attention pooling: the query, its key and the value's part of either, scores, context."""
    batch, tokens, channels = x
    heads = shapes[6]
    return batch * (6 * channels**2 + 4 * heads * (tokens + 1) * channels)


def _pool_backward_flop(
    grad_out: list[int], x: list[int], positions: list[int], *shapes: Any, **_: Any
) -> int:
    """Its backward: seven products with a weight; context, scores' and tokens' gradients."""
    batch, tokens, channels = x
    heads = shapes[3][0]
    return batch * (14 * channels**2 + 10 * heads * (tokens + 1) * channels)
