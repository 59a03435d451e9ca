"""Launchers of attention pooling in Triton: allocation, tiles and grids.

The kernels, and what is fused in them, are in tokens.py; tile shapes in configs.py. Legend: B
samples, N tokens, C channels, H heads. For sm_80 and newer.
"""

from __future__ import annotations

import torch
import triton

from clipfast.kernels.attention_pool.configs import Tile, attend_tile, grad_tokens_tile
from clipfast.kernels.attention_pool.tokens import (
    attend_backward_kernel,
    attend_kernel,
    grad_tokens_kernel,
    mean_token_kernel,
)
from clipfast.kernels.common.device import FUSED, dot_precision, processors, shared_bytes


def launch_mean_token(x: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """t_0 = mean_i x_i + p_0.

    Args:
        x: [B, N, C] fp16, bf16 or fp32, contiguous.
        positions: [N + 1, C] any float type.

    Returns:
        [B, C] fp32.
    """
    batch, tokens, channels = x.shape
    token = torch.empty((batch, channels), dtype=torch.float32, device=x.device)
    block_c = 64
    if batch:
        mean_token_kernel[(triton.cdiv(channels, block_c), batch)](
            x, positions.contiguous(), token, tokens, channels,
            BLOCK_N=32, BLOCK_C=block_c, num_warps=4, **FUSED,
        )  # fmt: skip
    return token


def launch_attend(
    x: torch.Tensor,
    positions: torch.Tensor,
    token: torch.Tensor,
    absorbed: torch.Tensor,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """A = softmax_i(scale a . t_i) and ctx = sum_i A_i t_i.

    Args:
        x: [B, N, C] fp16, bf16 or fp32, contiguous, N at most MAX_TOKENS.
        positions: [N + 1, C] any float type.
        token: [B, C] fp32, t_0.
        absorbed: [H, B, C], a, the type of x.
        scale: 1 / sqrt(d).

    Returns:
        A [H, B, N + 1] fp32, and ctx [H, P, B, C] of the type of x, a sum over P: two terms in half
        precision, which together hold it to 16 bits or more, one in fp32.

    Raises:
        ValueError: more than MAX_TOKENS tokens.
    """
    batch, tokens, channels = x.shape
    heads = absorbed.shape[0]
    is_half = x.dtype.itemsize == 2
    attention = torch.empty((heads, batch, tokens + 1), dtype=torch.float32, device=x.device)
    context = x.new_empty(heads, 2 if is_half else 1, batch, channels)
    tile = _attend_tile(x, heads, backward=False)
    if batch:
        attend_kernel[(triton.cdiv(heads, tile.block_h), batch)](
            x, positions.contiguous(), token, absorbed.contiguous(), attention, context,
            batch, scale, tokens, channels, heads, is_half, dot_precision(x.dtype),
            **tile.options(),
        )  # fmt: skip
    return attention, context


def launch_attend_backward(
    x: torch.Tensor,
    positions: torch.Tensor,
    token: torch.Tensor,
    attention: torch.Tensor,
    grad_context: torch.Tensor,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """dS = scale A (dA - <A, dA>), with ctx = sum_i A_i t_i anew and da = sum_i dS_i t_i.

    Args:
        x, positions, token, scale: as for `launch_attend`.
        attention: [H, B, N + 1] fp32, A.
        grad_context: [H, B, C], dctx, the type of x.

    Returns:
        dS [H, B, N + 1] fp32; ctx [H, P, B, C] as from `launch_attend`; da [H, B, C], the type
        of x.

    Raises:
        ValueError: more than MAX_TOKENS tokens.
    """
    batch, tokens, channels = x.shape
    heads = attention.shape[0]
    is_half = x.dtype.itemsize == 2
    grad_context = grad_context.contiguous()
    grad_scores, grad_absorbed = torch.empty_like(attention), torch.empty_like(grad_context)
    context = x.new_empty(heads, 2 if is_half else 1, batch, channels)
    tile = _attend_tile(x, heads, backward=True)
    if batch:
        attend_backward_kernel[(triton.cdiv(heads, tile.block_h), batch)](
            x, positions.contiguous(), token, attention, grad_context,
            grad_scores, context, grad_absorbed,
            batch, scale, tokens, channels, heads, is_half, dot_precision(x.dtype),
            **tile.options(),
        )  # fmt: skip
    return grad_scores, context, grad_absorbed


def launch_grad_tokens(
    attention: torch.Tensor,
    grad_scores: torch.Tensor,
    grad_context: torch.Tensor,
    absorbed: torch.Tensor,
    grad_token: torch.Tensor,
    want_positions: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """dx_i = sum_h (A_i + A_0 / N) dctx + (dS_i + dS_0 / N) a + g / N, and dp.

    Args:
        attention: [H, B, N + 1] fp32, A.
        grad_scores: [H, B, N + 1] fp32, dS.
        grad_context: [H, B, C], dctx.
        absorbed: [H, B, C], a.
        grad_token: [B, C], g = Wq^T dq, the type of a.
        want_positions: whether dp is wanted; else it is empty.

    Returns:
        dx [B, N, C], the type of a, and dp [N + 1, C] fp32.
    """
    heads, batch, rows = attention.shape
    channels, tokens = absorbed.shape[2], rows - 1
    dx = absorbed.new_empty(batch, tokens, channels)
    grad_first = torch.empty((batch, channels), dtype=torch.float32, device=dx.device)
    tile = grad_tokens_tile(tokens, heads, dx.dtype)
    tiles = triton.cdiv(tokens, tile.block_n)
    # Few samples: several programs share the channels of a tile of tokens.
    passes = triton.cdiv(channels, tile.block_c)
    wanted = triton.cdiv(2 * processors(dx.device, interpreted=1), max(1, tiles * batch))
    # Powers of two, so that a last, smaller batch seldom compiles anew.
    columns = triton.next_power_of_2(triton.cdiv(passes, min(wanted, passes))) * tile.block_c
    if batch:
        grad_tokens_kernel[(tiles, triton.cdiv(channels, columns), batch)](
            attention, grad_scores, grad_context.contiguous(), absorbed.contiguous(),
            grad_token.contiguous(), grad_first, dx, batch, tokens, channels, heads,
            dot_precision(dx.dtype), COLUMNS=columns, **tile.options(),
        )  # fmt: skip
    if not want_positions:
        return dx, grad_first.new_empty(0, channels)
    dp = grad_first.new_empty(rows, channels)
    torch.sum(grad_first, dim=0, out=dp[0])
    # dp_i = sum_b dt_i and dx_i = dt_i + dt_0 / N.
    torch.sub(dx.sum(dim=0, dtype=torch.float32), dp[0] / tokens, out=dp[1:])
    return dx, dp


def _attend_tile(x: torch.Tensor, heads: int, backward: bool) -> Tile:
    batch, tokens, _ = x.shape
    return attend_tile(
        tokens, heads, batch, x.dtype,
        processors(x.device, interpreted=1), shared_bytes(x.device, interpreted=99 << 10), backward,
    )  # fmt: skip
