"""What torch must know of attention pooling: schema, shapes, gradient."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from clipfast.ops.attention_pool import absorbed
from clipfast.ops.attention_pool.absorbed import DIFFERENTIABLE
from clipfast.ops.dtypes import accumulate_dtype
from clipfast.ops.registry import Gradient, Operator, Triton, declare, no_second_derivative

_WEIGHTS = (
    "Tensor x, Tensor positions, Tensor q_weight, Tensor q_bias, Tensor k_weight, Tensor k_bias, "
    "Tensor v_weight, Tensor v_bias"
)


def _uncast(implementation: Callable[..., Any]) -> Callable[..., Any]:
    """Without autocast, which would round what an operator holds in fp32 on purpose."""

    @functools.wraps(implementation)
    def call(*arguments):
        kind = arguments[0].device.type
        if not torch.is_autocast_enabled(kind):
            return implementation(*arguments)
        with torch.autocast(kind, enabled=False):
            return implementation(*arguments)

    return call


def _fake_forward(
    x, positions, q_weight, q_bias, k_weight, k_bias, v_weight, v_bias, num_heads, impl
):  # fmt: skip
    batch, tokens, channels = x.shape
    wide = accumulate_dtype(x.dtype)
    return (
        x.new_empty(batch, channels),
        x.new_empty(num_heads, batch, tokens + 1, dtype=wide),
        x.new_empty(batch, channels, dtype=wide),
        x.new_empty(batch, channels),
    )


def _fake_backward(
    grad_out, x, positions, q_weight, k_weight, v_weight, attention, token, query, wanted, impl
):  # fmt: skip
    square, wide = (x.shape[2],) * 2, token.dtype
    shapes = {
        "x": (x.shape, x.dtype),
        "positions": (positions.shape, wide),
        "q_weight": (square, x.dtype),
        "q_bias": (square[:1], wide),
        "k_weight": (square, x.dtype),
        "v_weight": (square, x.dtype),
        "v_bias": (square[:1], wide),
    }
    return tuple(
        x.new_empty(shapes[name][0], dtype=shapes[name][1]) if is_wanted else x.new_empty(0)
        for name, is_wanted in zip(DIFFERENTIABLE, wanted, strict=True)
    )


def _setup_context(ctx, inputs, output) -> None:
    x, positions, q_weight, q_bias, k_weight, k_bias, v_weight, v_bias, _, impl = inputs
    _, attention, token, query = output
    ctx.save_for_backward(x, positions, q_weight, k_weight, v_weight, attention, token, query)
    ctx.bias_dtypes = q_bias.dtype, k_bias.dtype, v_bias.dtype
    ctx.impl = impl
    ctx.mark_non_differentiable(attention, token, query)


def _autograd_backward(ctx, grad_out: Tensor, *_unused):
    x, positions, *rest = ctx.saved_tensors
    needs = ctx.needs_input_grad
    wanted = [bool(needs[i]) for i in (0, 1, 2, 3, 4, 6, 7)]
    grads = torch.ops.clipfast.attention_pool_backward(
        grad_out, x, positions, *rest, wanted, ctx.impl
    )
    dx, dp, dwq, dbq, dwk, dwv, dbv = (
        grad if is_wanted else None for grad, is_wanted in zip(grads, wanted, strict=True)
    )
    q_dtype, k_dtype, v_dtype = ctx.bias_dtypes
    # Zeros and not None: an optimizer steps, and decays, a parameter whose gradient is zero.
    dbk = x.new_zeros(x.shape[2], dtype=k_dtype) if needs[5] else None
    return (
        dx,
        None if dp is None else dp.to(positions.dtype),
        dwq,
        None if dbq is None else dbq.to(q_dtype),
        dwk,
        dbk,
        dwv,
        None if dbv is None else dbv.to(v_dtype),
        None,
        None,
    )


# Below every backend's key: the steps that `impl` names know the device.
forward_operator = declare(
    Operator(
        name="attention_pool",
        schema=(
            f"({_WEIGHTS}, int num_heads, str impl) -> "
            "(Tensor out, Tensor attention, Tensor token, Tensor query)"
        ),
        plain=_uncast(absorbed.forward),
        fake=_fake_forward,
        gradient=Gradient(_autograd_backward, _setup_context),
        forms=(Triton("attention_pool"),),
        chosen_by="argument",
    )
)
declare(
    Operator(
        name="attention_pool_backward",
        schema=(
            "(Tensor grad_out, Tensor x, Tensor positions, Tensor q_weight, Tensor k_weight, "
            "Tensor v_weight, Tensor attention, Tensor token, Tensor query, bool[] wanted, "
            "str impl) -> (Tensor grad_x, Tensor grad_positions, Tensor grad_q_weight, "
            "Tensor grad_q_bias, Tensor grad_k_weight, Tensor grad_v_weight, Tensor grad_v_bias)"
        ),
        plain=_uncast(absorbed.backward),
        fake=_fake_backward,
        gradient=no_second_derivative("attention_pool", "attention_pool.reference"),
        forms=(Triton("attention_pool"),),
        chosen_by="argument",
    )
)
