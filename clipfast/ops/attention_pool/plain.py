"""The steps of attention pooling that read tokens, in plain torch on any device.

The algebra and the legend are in clipfast/ops/attention_pool. Tokens with their positions are a
temporary of a few samples: adding p there costs one pass over data in cache, whereas separate
products with p would double the FLOP.
"""

from __future__ import annotations

import torch
from torch import Tensor

from clipfast.ops.normalize import accumulate_dtype
from clipfast.ops.products import bmm

# Tokens with their positions are formed for as many samples at once as stay in cache (CPU), or as
# keep a GPU busy without doubling its memory.
CHUNK_BYTES = {"cpu": 8 << 20}
DEFAULT_CHUNK_BYTES = 256 << 20
_HAS_WIDE_PRODUCTS = hasattr(torch.ops.aten.bmm, "dtype")


def work_dtype(x: Tensor) -> torch.dtype:
    """The type of products with tokens: a CPU's half-precision products round their results."""
    return accumulate_dtype(x.dtype) if x.device.type == "cpu" else x.dtype


def wide_product(left: Tensor, right: Tensor) -> Tensor:
    """left @ right for each item of a batch, in the type that sums are held in."""
    wide = accumulate_dtype(left.dtype)
    if left.dtype == wide:
        return bmm(left, right)
    if _HAS_WIDE_PRODUCTS and left.is_cuda:
        return torch.bmm(left, right, out_dtype=wide)
    return torch.bmm(left, right).to(wide)


def split(wide: Tensor, dtype: torch.dtype) -> Tensor:
    """[H, B, C] as a sum over the second dimension of [H, P, B, C], to the type's square.

    Rounding ctx once would add an error of the size of the output's own rounding, which the usual
    form does not have: its values are rounded one by one, and their errors average out.
    """
    if wide.dtype == dtype or wide.device.type == "cpu":
        return wide[:, None]
    high = wide.to(dtype)
    return torch.stack([high, (wide - high).to(dtype)], dim=1)


def _head_groups(weights: Tensor) -> list[slice]:
    """Heads whose weights [H, d, C] stay in cache when they are widened."""
    heads, width, channels = weights.shape
    size = max(1, CHUNK_BYTES["cpu"] // (4 * width * channels))
    return [slice(start, start + size) for start in range(0, heads, size)]


def project_context(context: Tensor, weights: Tensor) -> Tensor:
    """Wv_h ctx_h.

    Args:
        context: [H, P, B, C], a sum over P: see `split`.
        weights: [H, d, C], the rows of Wv.

    Returns:
        [H, B, d] in the type that sums are held in.
    """
    heads, parts, batch, _ = context.shape
    flat = context.flatten(1, 2)
    if flat.dtype == weights.dtype:
        products = wide_product(flat, weights.mT)
    else:
        products = flat.new_empty(heads, parts * batch, weights.shape[1])
        for group in _head_groups(weights):
            bmm(flat[group], weights[group].to(flat.dtype).mT, out=products[group])
    return products.unflatten(1, (parts, batch)).sum(dim=1)


def grad_value_weights(grad_heads: Tensor, context: Tensor) -> Tensor:
    """dWv_h = sum_b dout_h ctx_h^T.

    Args:
        grad_heads: [H, B, d], dout.
        context: [H, P, B, C], a sum over P: see `split`.

    Returns:
        [H, d, C], the type of `grad_heads`.
    """
    heads, parts, _, channels = context.shape
    left = torch.cat([grad_heads] * parts, dim=1) if parts > 1 else grad_heads
    flat = context.flatten(1, 2)
    if flat.dtype == left.dtype:
        return bmm(left.mT, flat)
    grad = left.new_empty(heads, left.shape[2], channels)
    for group in _head_groups(grad):
        grad[group] = bmm(left[group].to(flat.dtype).mT, flat[group])
    return grad


def chunks(x: Tensor) -> list[slice]:
    """Parts of the batch whose tokens are worked on together."""
    batch, tokens, channels = x.shape
    limit = CHUNK_BYTES.get(x.device.type, DEFAULT_CHUNK_BYTES)
    item = (tokens + 1) * channels * work_dtype(x).itemsize
    size = max(1, limit // max(item, 1))
    return [slice(start, start + size) for start in range(0, batch, size)]


def positioned_tokens(x: Tensor, positions: Tensor, token: Tensor) -> Tensor:
    """t [b, N + 1, C] in the type of the products."""
    batch, tokens, channels = x.shape
    t = x.new_empty(batch, tokens + 1, channels, dtype=work_dtype(x))
    t[:, 0] = token
    torch.add(x, positions[1:].to(t.dtype), out=t[:, 1:])
    return t


def mean_token(x: Tensor, positions: Tensor) -> Tensor:
    """t_0 = mean_i x_i + p_0 [B, C], in the type that sums are held in."""
    wide = accumulate_dtype(x.dtype)
    return x.mean(dim=1, dtype=wide) + positions[0].to(wide)


def attend(
    x: Tensor, positions: Tensor, token: Tensor, absorbed: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    """A = softmax_i(scale a . t_i) and ctx = sum_i A_i t_i.

    Args:
        x: [B, N, C] fp16, bf16, fp32 or fp64, contiguous.
        positions: [N + 1, C].
        token: [B, C], t_0.
        absorbed: [H, B, C], a, the type of x.
        scale: 1 / sqrt(d).

    Returns:
        A [H, B, N + 1] fp32 (fp64 for fp64) and ctx [H, P, B, C]: see `split`.
    """
    heads, batch, channels = absorbed.shape
    attention = token.new_empty(heads, batch, x.shape[1] + 1)
    context = token.new_empty(heads, batch, channels)
    for part in chunks(x):
        t = positioned_tokens(x[part], positions, token[part])
        vectors = absorbed[:, part].transpose(0, 1).to(t.dtype)
        weights = (wide_product(vectors, t.mT) * scale).softmax(dim=2)
        attention[:, part] = weights.transpose(0, 1)
        context[:, part] = wide_product(weights.to(t.dtype), t).transpose(0, 1)
    return attention, split(context, x.dtype)


def attend_backward(
    x: Tensor,
    positions: Tensor,
    token: Tensor,
    attention: Tensor,
    grad_context: Tensor,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """dS = scale A (dA - <A, dA>), with ctx = sum_i A_i t_i anew and da = sum_i dS_i t_i.

    Args:
        x: [B, N, C], contiguous.
        positions: [N + 1, C].
        token: [B, C], t_0.
        attention: [H, B, N + 1], A.
        grad_context: [H, B, C], dctx, the type of x.
        scale: 1 / sqrt(d).

    Returns:
        dS [H, B, N + 1], the type of A; ctx [H, P, B, C], see `split`; da [H, B, C], the type of x.
    """
    heads = attention.shape[0]
    grad_scores = torch.empty_like(attention)
    context, grad_absorbed = token.new_empty(grad_context.shape), torch.empty_like(grad_context)
    for part in chunks(x):
        t = positioned_tokens(x[part], positions, token[part])
        weights = attention[:, part].transpose(0, 1)
        grad = wide_product(grad_context[:, part].transpose(0, 1).to(t.dtype), t.mT)
        grad -= (weights * grad).sum(dim=2, keepdim=True)
        grad *= weights * scale
        grad_scores[:, part] = grad.transpose(0, 1)
        sums = wide_product(torch.cat([weights, grad], dim=1).to(t.dtype), t).transpose(0, 1)
        context[:, part] = sums[:heads]
        grad_absorbed[:, part] = sums[heads:]
    return grad_scores, split(context, x.dtype), grad_absorbed


def grad_tokens(
    attention: Tensor,
    grad_scores: Tensor,
    grad_context: Tensor,
    absorbed: Tensor,
    grad_token: Tensor,
    want_positions: bool,
) -> tuple[Tensor, Tensor]:
    """dx_i = sum_h (A_i + A_0 / N) dctx + (dS_i + dS_0 / N) a + g / N, and dp.

    Args:
        attention: [H, B, N + 1], A.
        grad_scores: [H, B, N + 1], dS.
        grad_context: [H, B, C], dctx.
        absorbed: [H, B, C], a.
        grad_token: [B, C], g = Wq^T dq, the type of a.
        want_positions: whether dp is wanted; else it is empty.

    Returns:
        dx [B, N, C], the type of a, and dp [N + 1, C], the type of A.
    """
    _, batch, rows = attention.shape
    channels = absorbed.shape[2]
    dx = absorbed.new_empty(batch, rows - 1, channels)
    dp = attention.new_zeros(rows if want_positions else 0, channels)
    # The query's share of dt_0 is one more term of the sums over heads.
    query_row = attention.new_zeros(batch, 1, rows)
    query_row[:, :, 0] = 1.0
    for part in chunks(dx):
        by_head = [grad_context[:, part].transpose(0, 1), absorbed[:, part].transpose(0, 1)]
        vectors = torch.cat([*by_head, grad_token[part, None]], dim=1).to(work_dtype(dx))
        by_head = [attention[:, part].transpose(0, 1), grad_scores[:, part].transpose(0, 1)]
        weights = torch.cat([*by_head, query_row[part]], dim=1)
        first = weights[:, :, :1]
        rest = (weights[:, :, 1:] + first / (rows - 1)).to(vectors.dtype)
        if vectors.dtype == dx.dtype:
            bmm(rest.mT, vectors, out=dx[part])
        else:
            dx[part] = bmm(rest.mT, vectors)
        if want_positions:
            dp[0] += (first.to(vectors.dtype).flatten(0, 1).mT @ vectors.flatten(0, 1))[0]
            dp[1:] += dx[part].sum(dim=0, dtype=dp.dtype)
    if want_positions:
        dp[1:] -= dp[0] / (rows - 1)
    return dx, dp
