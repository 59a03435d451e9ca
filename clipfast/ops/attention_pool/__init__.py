"""Attention pooling with one query in absorbed form: the operator, autograd, who implements it.

Legend: B samples, N tokens of a feature map, C channels, H heads, d = C / H. Row 0 of what has
N + 1 rows belongs to the mean token. W_h are the d rows of a weight that make head h.

    t_0 = mean_i x_i + p_0      t_i = x_i + p_i      q = Wq t_0 + bq
    a_h = Wk_h^T q_h            A_h = softmax_i(a_h . t_i / sqrt(d))
    ctx_h = sum_i A_hi t_i      out_h = Wv_h ctx_h + bv_h

Equal to one row of multi-head attention: q_h . (Wk_h t_i + bk_h) = a_h . t_i + q_h . bk_h, whose
last term softmax drops, and sum_i A_hi (Wv_h t_i + bv_h) = Wv_h ctx_h + bv_h, because weights sum
to 1. No key or value exists: 4HNC + 6C^2 FLOP a sample forward, where they alone cost 4NC^2.

    dctx_h = Wv_h^T dout_h      dA_hi = dctx_h . t_i      dS = A (dA - sum_i A_i dA_i) / sqrt(d)
    da_h = sum_i dS_hi t_i      dq_h = Wk_h da_h          dWk_h = sum_b q_h da_h^T      dbk = 0
    dt_i = sum_h A_hi dctx_h + dS_hi a_h                  dt_0 also takes g = Wq^T dq
    dx_i = dt_i + dt_0 / N                                one GEMM a sample
    dp_0 = sum_b dt_0           dp_i = sum_b dx_i - dp_0 / N

The backward pass keeps x, A and two vectors a sample. a and ctx, H / N of the size of x, are
computed again. Products with weights are the library's; the steps that read tokens exist twice:

    plain    clipfast/ops/attention_pool/plain.py, on any device
    triton   kernels/attention_pool: sm_80 and newer, up to 256 tokens, not in fp64. Picked for
             half precision only
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from clipfast.ops import registry
from clipfast.ops.attention_pool import plain
from clipfast.ops.normalize import DTYPES, accumulate_dtype
from clipfast.ops.registry import (
    PLAIN,
    TRITON,
    Gradient,
    Operator,
    Triton,
    declare,
    no_second_derivative,
)

_WEIGHTS = (
    "Tensor x, Tensor positions, Tensor q_weight, Tensor q_bias, Tensor k_weight, Tensor k_bias, "
    "Tensor v_weight, Tensor v_bias"
)
IMPLS = (PLAIN, TRITON)
MAX_TRITON_SAMPLES = 65_535  # a dimension of the grid
MAX_TRITON_TOKENS = 256  # as in kernels/attention_pool, which takes long to import
# Inputs whose gradients `wanted` selects, in the order of the backward operator's results.
_DIFFERENTIABLE = ("x", "positions", "q_weight", "q_bias", "k_weight", "v_weight", "v_bias")


def reference(
    x: Tensor,
    positions: Tensor,
    q_weight: Tensor,
    q_bias: Tensor,
    k_weight: Tensor,
    k_bias: Tensor,
    v_weight: Tensor,
    v_bias: Tensor,
    num_heads: int,
) -> Tensor:
    """The operator as it is usually written, with keys and values of all tokens: truth in tests."""
    t = torch.cat([x.mean(dim=1, keepdim=True), x], dim=1) + positions.to(x.dtype)
    q = F.linear(t[:, :1], q_weight, q_bias.to(x.dtype))
    k = F.linear(t, k_weight, k_bias.to(x.dtype))
    v = F.linear(t, v_weight, v_bias.to(x.dtype))
    q, k, v = (part.unflatten(2, (num_heads, -1)).transpose(1, 2) for part in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v).flatten(1)


def available_impls(device: torch.device | str) -> list[str]:
    """Names of the implementations that can serve on a device, best first.

    Args:
        device: where the tokens are.

    Returns:
        Some of `IMPLS`. Interpreted Triton comes after plain torch: it is there for tests.
    """
    return registry.available_impls("attention_pool", device)


def choose(impl: str, x: Tensor) -> str:
    """The implementation that serves some tokens.

    Args:
        impl: "auto" or one of `IMPLS`.
        x: the tokens [B, N, C].

    Returns:
        One of `IMPLS`.

    Raises:
        ValueError: an unknown name, or one that cannot serve these tokens here.
    """
    impl = registry.current_name(impl)
    names = available_impls(x.device)
    if (
        x.dtype == torch.float64
        or x.shape[1] > MAX_TRITON_TOKENS
        or x.shape[0] > MAX_TRITON_SAMPLES
    ):
        names = [PLAIN]
    elif x.dtype == torch.float32:
        # Without tensor cores arithmetic is what takes the time, and the library's is faster.
        names.sort(key=(PLAIN, TRITON).index)
    if impl == "auto":
        return names[0]
    if impl not in names:
        raise ValueError(
            f"impl={impl!r} cannot serve {x.dtype} {list(x.shape)} on {x.device} here (Triton: "
            f"half and single precision, up to {MAX_TRITON_TOKENS} tokens); what can: auto, "
            f"{', '.join(names)}"
        )
    return impl


def attention_pool(
    x: Tensor,
    positions: Tensor,
    q_weight: Tensor,
    q_bias: Tensor,
    k_weight: Tensor,
    k_bias: Tensor,
    v_weight: Tensor,
    v_bias: Tensor,
    num_heads: int,
    impl: str = "auto",
) -> Tensor:
    """Multi-head attention whose one query is the mean token, before the output projection.

    Equal to

        t = torch.cat([x.mean(1, keepdim=True), x], 1) + positions
        q, k, v = Wq t[:, :1] + bq, Wk t + bk, Wv t + bv        # each then split into heads
        out = F.scaled_dot_product_attention(q, k, v)

    without t, k or v of all tokens; see the head of this file. Sums are fp32 inside (fp64 for
    fp64). The gradient of the key bias is zeros. Only the first derivative is defined.

    Args:
        x: [B, N, C] fp16, bf16, fp32 or fp64, N at least 1. Contiguous ones (the rows of a
            channels_last feature map) are read in place; others are copied in either pass.
        positions: [N + 1, C], row 0 that of the mean token.
        q_weight, k_weight, v_weight: [C, C], the type of x.
        q_bias, k_bias, v_bias: [C], of any type, like positions.
        num_heads: must divide C.
        impl: "auto", or one of `available_impls(x.device)`.

    Returns:
        out [B, C], the type of x.

    Raises:
        TypeError: x is none of the four types, or the weights differ from it.
        ValueError: shapes do not fit, or impl cannot serve here.

    Source: Radford et al. 2021, section 2.4.
    """
    if x.dim() != 3 or x.shape[1] < 1:
        raise ValueError(f"expected tokens x [B, N, C] with N >= 1, got {list(x.shape)}")
    _, tokens, channels = x.shape
    if num_heads < 1 or channels % num_heads:
        raise ValueError(f"num_heads={num_heads} must divide the {channels} channels of x")
    if tuple(positions.shape) != (tokens + 1, channels):
        raise ValueError(
            f"expected positions [{tokens + 1}, {channels}] for {tokens} tokens and their mean, "
            f"got {list(positions.shape)}: interpolate them to this grid"
        )
    weights, biases = (q_weight, k_weight, v_weight), (q_bias, k_bias, v_bias)
    for letter, weight, bias in zip("qkv", weights, biases, strict=True):
        if tuple(weight.shape) != (channels, channels) or tuple(bias.shape) != (channels,):
            raise ValueError(
                f"expected {letter}_weight [{channels}, {channels}] and {letter}_bias "
                f"[{channels}], got {list(weight.shape)} and {list(bias.shape)}"
            )
        if weight.dtype != x.dtype:
            raise TypeError(f"expected {letter}_weight of x's type {x.dtype}, got {weight.dtype}")
    if x.dtype not in DTYPES:
        raise TypeError(f"expected x of fp32, fp64, fp16 or bf16, got {x.dtype}")
    out, _, _, _ = torch.ops.clipfast.attention_pool(
        x, positions, q_weight, q_bias, k_weight, k_bias, v_weight, v_bias, num_heads,
        choose(impl, x),
    )  # fmt: skip
    return out


class Steps(NamedTuple):
    """One implementation's steps; see clipfast/ops/attention_pool/plain.py."""

    mean_token: Callable[..., Tensor]
    attend: Callable[..., tuple[Tensor, Tensor]]
    attend_backward: Callable[..., tuple[Tensor, Tensor, Tensor]]
    grad_tokens: Callable[..., tuple[Tensor, Tensor]]


def _steps(impl: str) -> Steps:
    return _STEPS[impl]


_STEPS = {
    PLAIN: Steps(*(getattr(plain, name) for name in Steps._fields)),
    TRITON: Steps(*(registry.launcher(f"attention_pool:launch_{name}") for name in Steps._fields)),
}


def _uncast(implementation: Callable) -> Callable:
    """Without autocast, which would round what an operator holds in fp32 on purpose."""

    @functools.wraps(implementation)
    def call(*arguments):
        kind = arguments[0].device.type
        if not torch.is_autocast_enabled(kind):
            return implementation(*arguments)
        with torch.autocast(kind, enabled=False):
            return implementation(*arguments)

    return call


def _by_head(vectors: Tensor, num_heads: int) -> Tensor:
    """[B, C] as [H, B, d]."""
    batch, channels = vectors.shape
    return vectors.view(batch, num_heads, channels // num_heads).transpose(0, 1)


def _joined(parts: Tensor) -> Tensor:
    """[H, B, d] as [B, C]."""
    return parts.transpose(0, 1).flatten(1)


def _head_rows(weight: Tensor, num_heads: int) -> Tensor:
    """[C, C] as [H, d, C]."""
    return weight.unflatten(0, (num_heads, weight.shape[0] // num_heads))


def _forward(
    x, positions, q_weight, q_bias, k_weight, k_bias, v_weight, v_bias, num_heads, impl
):  # fmt: skip
    steps, scale = _steps(impl), (x.shape[2] // num_heads) ** -0.5
    x = x.contiguous()
    token = steps.mean_token(x, positions)
    query = F.linear(token.to(x.dtype), q_weight, q_bias.to(x.dtype))
    absorbed = torch.bmm(_by_head(query, num_heads), _head_rows(k_weight, num_heads))
    attention, context = steps.attend(x, positions, token, absorbed, scale)
    parts = plain.project_context(context, _head_rows(v_weight, num_heads))
    parts = (parts + v_bias.to(parts.dtype).view(num_heads, 1, -1)).to(x.dtype)
    return _joined(parts), attention, token, query


def _backward(
    grad_out, x, positions, q_weight, k_weight, v_weight, attention, token, query, wanted, impl
):  # fmt: skip
    num_heads, channels = attention.shape[0], x.shape[2]
    steps, scale = _steps(impl), (channels // num_heads) ** -0.5
    want = dict(zip(_DIFFERENTIABLE, wanted, strict=True))
    x, grad_out = x.contiguous(), grad_out.contiguous()
    grad_heads, query_heads = _by_head(grad_out, num_heads), _by_head(query, num_heads)

    grad_context = torch.bmm(grad_heads, _head_rows(v_weight, num_heads))
    grad_scores, context, grad_absorbed = steps.attend_backward(
        x, positions, token, attention, grad_context, scale
    )
    grad_v_weight = grad_k_weight = grad_q_weight = grad_x = grad_positions = None
    if want["v_weight"]:
        grad_v_weight = plain.grad_value_weights(grad_heads, context).view(channels, channels)
    if want["k_weight"]:
        grad_k_weight = torch.bmm(query_heads.mT, grad_absorbed).view(channels, channels)
    del context
    grad_query = _joined(torch.bmm(grad_absorbed, _head_rows(k_weight, num_heads).mT))
    del grad_absorbed
    if want["q_weight"]:
        grad_q_weight = grad_query.mT @ token.to(x.dtype)
    if want["x"] or want["positions"]:
        absorbed = torch.bmm(query_heads, _head_rows(k_weight, num_heads))
        grad_x, grad_positions = steps.grad_tokens(
            attention, grad_scores, grad_context, absorbed, grad_query @ q_weight,
            want["positions"],
        )  # fmt: skip
    results = (
        grad_x if want["x"] else None,
        grad_positions if want["positions"] else None,
        grad_q_weight,
        _sum_rows(grad_query) if want["q_bias"] else None,
        grad_k_weight,
        grad_v_weight,
        _sum_rows(grad_out) if want["v_bias"] else None,
    )
    # An operator's results are tensors, and no two of them share memory.
    return tuple(x.new_empty(0) if result is None else result for result in results)


def _sum_rows(rows: Tensor) -> Tensor:
    return rows.sum(dim=0, dtype=accumulate_dtype(rows.dtype))


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
        for name, is_wanted in zip(_DIFFERENTIABLE, wanted, strict=True)
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
declare(
    Operator(
        name="attention_pool",
        schema=(
            f"({_WEIGHTS}, int num_heads, str impl) -> "
            "(Tensor out, Tensor attention, Tensor token, Tensor query)"
        ),
        plain=_uncast(_forward),
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
        plain=_uncast(_backward),
        fake=_fake_backward,
        gradient=no_second_derivative("attention_pool", "attention_pool.reference"),
        forms=(Triton("attention_pool"),),
        chosen_by="argument",
    )
)
