"""Attention pooling with one query: the public operator, and what it must equal.

The algebra and the legend are in clipfast/ops/attention_pool/absorbed.py.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from clipfast.ops.attention_pool.declaration import forward_operator
from clipfast.ops.attention_pool.impls import choose
from clipfast.ops.dtypes import DTYPES


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

    without t, k or v of all tokens; see absorbed.py. Sums are fp32 inside (fp64 for
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
    out, _, _, _ = forward_operator(
        x, positions, q_weight, q_bias, k_weight, k_bias, v_weight, v_bias, num_heads,
        choose(impl, x),
    )  # fmt: skip
    return out
