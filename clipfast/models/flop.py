"""Counts the floating-point operations that a function does.

A multiplication and an addition are two. Matrix products, convolutions and attention count, inside
our own operators too; what is computed element by element does not. Attention counts every pair of
a query and a key of its sequence, as torch does, whether a causal mask hides the pair or not.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import (
    FlopCounterMode,
    sdpa_backward_flop_count,
    sdpa_flop_count,
)

import clipfast.ops.attention_pool
import clipfast.ops.contrastive
import clipfast.ops.products  # noqa: F401


def count_flop(run: Callable[[], Any]) -> tuple[Any, int]:
    """What a function returns, and the FLOP that it does.

    Under the counter nothing is compiled: what a compiled function does cannot be counted so.
    """
    aten, ours = torch.ops.aten, torch.ops.clipfast
    formulas = {
        # The CPU's attention, which torch does not count.
        aten._scaled_dot_product_flash_attention_for_cpu: (
            lambda q, k, v, *_, **__: sdpa_flop_count(q, k, v)
        ),
        aten._scaled_dot_product_flash_attention_for_cpu_backward: (
            lambda grad_out, q, k, v, *_, **__: sdpa_backward_flop_count(grad_out, q, k, v)
        ),
        ours.linear: _linear_flop,
        ours.linear_backward: _linear_backward_flop,
        ours.bmm: _bmm_flop,
        ours.bmm_out: _bmm_flop,
        ours.attention_pool: _pool_flop,
        ours.attention_pool_backward: _pool_backward_flop,
        **_varlen_formulas(),
    }
    for form in ("", "_triton", "_plain"):
        formulas[getattr(ours, f"contrastive_statistics{form}")] = _statistics_flop
        formulas[getattr(ours, f"contrastive_gradients{form}")] = _gradients_flop
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


def pool_flop(batch: int, tokens: int, channels: int, heads: int) -> int:
    """Attention pooling, forward and backward, without the projection of its answer."""
    forward = _pool_flop([batch, tokens, channels], [], *[None] * 6, heads)
    return forward + _pool_backward_flop([], [batch, tokens, channels], [], *[None] * 3, [heads])


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


def _bmm_flop(a: list[int], b: list[int], *_: Any, **__: Any) -> int:
    """A product of each pair of matrices."""
    return 2 * math.prod(a) * b[-1]


def _statistics_flop(x: list[int], y: list[int], *_: Any, **__: Any) -> int:
    """The loss's logits: one product of B rows and G columns."""
    return 2 * math.prod(x) * y[0]


def _gradients_flop(x: list[int], y: list[int], *others: Any, **_: Any) -> int:
    """The gradients that are wanted, one product each; one more where no logits were kept."""
    kept, _, want_rows, want_columns = others[7:11]
    products = want_rows + want_columns
    return 2 * math.prod(x) * y[0] * (products + (products > 0 and math.prod(kept) == 0))


def _varlen_formulas() -> dict[Any, Callable[..., int]]:
    """Attention over sequences of unequal length, which torch counts from 2.13 on."""
    try:
        import torch.nn.attention.varlen
    except ImportError:
        return {}
    return {
        torch.ops.torch_attn._varlen_attn: _varlen_flop,
        torch.ops.torch_attn._varlen_attn_backward: _varlen_backward_flop,
    }


def _varlen_flop(
    q: Tensor, k: Tensor, v: Tensor, starts_q: Tensor, starts_k: Tensor | None, *_: Any, **__: Any
) -> int:
    """Scores and context: two products of the queries and the keys of each sequence."""
    return 2 * _pairs(starts_q, starts_k) * q.shape[1] * (q.shape[2] + v.shape[2])


def _varlen_backward_flop(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    starts_q: Tensor,
    starts_k: Tensor | None,
    *_: Any,
    **__: Any,
) -> int:
    """Scores again, dq and dk; the weights' gradient and dv."""
    return 2 * _pairs(starts_q, starts_k) * q.shape[1] * (3 * q.shape[2] + 2 * v.shape[2])


# Their lengths are values: the counter hands these formulas tensors instead of shapes.
for _formula in (_varlen_flop, _varlen_backward_flop):
    setattr(_formula, "_get_raw", True)  # noqa: B010


def _pairs(starts_q: Tensor, starts_k: Tensor | None) -> int:
    """Pairs of a query and a key in all sequences; each begins where the one before ends."""
    queries = starts_q.diff().long()
    keys = queries if starts_k is None else starts_k.diff().long()
    return int((queries * keys).sum())
