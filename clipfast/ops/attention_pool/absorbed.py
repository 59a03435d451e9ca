"""Attention pooling with one query in absorbed form, forward and backward.

Legend: B samples, N tokens of a feature map, C channels, H heads, d = C / H. Row 0 of what has
N + 1 rows belongs to the mean token. W_h are the d rows of a weight that make head h.

    t_0 = mean_i x_i + p_0      t_i = x_i + p_i      q = Wq t_0 + bq
    a_h = Wk_h^T q_h            A_h = softmax_i(a_h . t_i / sqrt(d))
    ctx_h = sum_i A_hi t_i      out_h = Wv_h ctx_h + bv_h

Equal to one row of multi-head attention: q_h . (Wk_h t_i + bk_h) = a_h . t_i + q_h . bk_h, whose
last term softmax drops, and sum_i A_hi (Wv_h t_i + bv_h) = Wv_h ctx_h + bv_h, because weights sum
to 1. No key or value exists: 4HNC + 6C^2 FLOP per sample forward, where they alone cost 4NC^2.

    dctx_h = Wv_h^T dout_h      dA_hi = dctx_h . t_i      dS = A (dA - sum_i A_i dA_i) / sqrt(d)
    da_h = sum_i dS_hi t_i      dq_h = Wk_h da_h          dWk_h = sum_b q_h da_h^T      dbk = 0
    dt_i = sum_h A_hi dctx_h + dS_hi a_h                  dt_0 also takes g = Wq^T dq
    dx_i = dt_i + dt_0 / N                                one GEMM per sample
    dp_0 = sum_b dt_0           dp_i = sum_b dx_i - dp_0 / N

The backward pass keeps x, A and two vectors per sample. a and ctx, H / N of the size of x, are
computed again. Products with weights are the library's; the steps that read tokens are those of the
implementation (impls.py).
"""

from __future__ import annotations

from torch import Tensor

from clipfast.ops.attention_pool import plain
from clipfast.ops.attention_pool.impls import STEPS
from clipfast.ops.dtypes import accumulate_dtype
from clipfast.ops.products import bmm, linear

# Inputs whose gradients `wanted` selects, in the order of the backward operator's results.
DIFFERENTIABLE = ("x", "positions", "q_weight", "q_bias", "k_weight", "v_weight", "v_bias")


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


def forward(
    x, positions, q_weight, q_bias, k_weight, k_bias, v_weight, v_bias, num_heads, impl
):  # fmt: skip
    steps, scale = STEPS[impl], (x.shape[2] // num_heads) ** -0.5
    x = x.contiguous()
    token = steps.mean_token(x, positions)
    query = linear(token.to(x.dtype), q_weight, q_bias.to(x.dtype))
    absorbed = bmm(_by_head(query, num_heads), _head_rows(k_weight, num_heads))
    attention, context = steps.attend(x, positions, token, absorbed, scale)
    parts = plain.project_context(context, _head_rows(v_weight, num_heads))
    parts = (parts + v_bias.to(parts.dtype).view(num_heads, 1, -1)).to(x.dtype)
    return _joined(parts), attention, token, query


def backward(
    grad_out, x, positions, q_weight, k_weight, v_weight, attention, token, query, wanted, impl
):  # fmt: skip
    num_heads, channels = attention.shape[0], x.shape[2]
    steps, scale = STEPS[impl], (channels // num_heads) ** -0.5
    want = dict(zip(DIFFERENTIABLE, wanted, strict=True))
    x, grad_out = x.contiguous(), grad_out.contiguous()
    grad_heads, query_heads = _by_head(grad_out, num_heads), _by_head(query, num_heads)

    grad_context = bmm(grad_heads, _head_rows(v_weight, num_heads))
    grad_scores, context, grad_absorbed = steps.attend_backward(
        x, positions, token, attention, grad_context, scale
    )
    grad_v_weight = grad_k_weight = grad_q_weight = grad_x = grad_positions = None
    if want["v_weight"]:
        grad_v_weight = plain.grad_value_weights(grad_heads, context).view(channels, channels)
    if want["k_weight"]:
        grad_k_weight = bmm(query_heads.mT, grad_absorbed).view(channels, channels)
    del context
    grad_query = _joined(bmm(grad_absorbed, _head_rows(k_weight, num_heads).mT))
    del grad_absorbed
    if want["q_weight"]:
        grad_q_weight = linear(grad_query.mT, token.to(x.dtype).mT)
    if want["x"] or want["positions"]:
        absorbed = bmm(query_heads, _head_rows(k_weight, num_heads))
        grad_x, grad_positions = steps.grad_tokens(
            attention, grad_scores, grad_context, absorbed, linear(grad_query, q_weight.mT),
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
