"""Tiles and launches of attention pooling's Triton kernels (kernels/attention_pool/tokens.py).

Not measured on a GPU. Tile shapes are chosen from `ptxas -v`: no spilled register in half precision
(in fp32 up to 128 tokens), and shared memory within what sm_86 grants, the least of those served.
tests/ops/test_attention_pool_triton.py keeps it so.

Legend: B samples, N tokens, C channels, H heads. For sm_80 and newer.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton

from clipfast.kernels.attention_pool.tokens import (
    attend_backward_kernel,
    attend_kernel,
    grad_tokens_kernel,
    mean_token_kernel,
)

MAX_TOKENS = 256  # scores of all tokens are one tile


class Shape(NamedTuple):
    """A kernel's tile, and the threads that work on it."""

    block_n: int
    block_h: int
    block_c: int
    num_warps: int
    num_stages: int

    def options(self) -> dict[str, int]:
        """The launch's keyword arguments."""
        return {
            "BLOCK_N": self.block_n,
            "BLOCK_H": self.block_h,
            "BLOCK_C": self.block_c,
            "num_warps": self.num_warps,
            "num_stages": self.num_stages,
        }


def attend_shape(
    tokens: int, heads: int, batch: int, dtype: torch.dtype, processors: int, backward: bool
) -> Shape:
    """The tile of the forward or the backward walk.

    Args:
        tokens: N, at most MAX_TOKENS.
        heads: H.
        batch: B.
        dtype: of x.
        processors: multiprocessors of the device. The more heads a program owns, the fewer times
            x passes from L2; but there should be a program for each processor.
        backward: the backward walk holds two sets of weights.

    Returns:
        The tile.
    """
    if tokens > MAX_TOKENS:
        raise ValueError(f"expected at most {MAX_TOKENS} tokens, got {tokens}: use impl='torch'")
    block_n = max(16, triton.next_power_of_2(tokens))
    is_half = dtype.itemsize == 2
    most = (8192 if is_half else 2048) // (2 if backward else 1)  # scores that a program holds
    block_h = 64
    while block_h > 16 and (
        block_h >= 2 * heads
        or block_n * block_h > most
        or batch * triton.cdiv(heads, block_h) < processors
    ):
        block_h //= 2
    block_c = max(16, min(64 if is_half else 32, (8192 if is_half else 2048) // block_n))
    num_warps = 4 if block_n <= 64 else 8
    # Three tiles in flight where that stays within the 99 KiB that sm_86 and sm_89 grant.
    return Shape(block_n, block_h, block_c, num_warps, 3 if block_n <= 64 else 2)


def grad_tokens_shape(tokens: int, heads: int, dtype: torch.dtype) -> Shape:
    """The tile of the kernel that writes dx; arguments as for `attend_shape`."""
    is_half = dtype.itemsize == 2
    block_n = max(16, min(64 if is_half else 32, triton.next_power_of_2(tokens)))
    block_h = max(16, triton.next_power_of_2(heads))
    return Shape(block_n, block_h, 64 if is_half else 32, 4 if is_half else 8, 2)


def _processors(device: torch.device) -> int:
    if device.type != "cuda":
        return 1
    return torch.cuda.get_device_properties(device).multi_processor_count


def _precision() -> str:
    return "ieee" if torch.get_float32_matmul_precision() == "highest" else "tf32"


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
            BLOCK_N=32, BLOCK_C=block_c, num_warps=4,
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
    shape = attend_shape(tokens, heads, batch, x.dtype, _processors(x.device), False)
    if batch:
        attend_kernel[(triton.cdiv(heads, shape.block_h), batch)](
            x, positions.contiguous(), token, absorbed.contiguous(), attention, context,
            batch, scale, tokens, channels, heads, is_half, _precision(), **shape.options(),
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
    shape = attend_shape(tokens, heads, batch, x.dtype, _processors(x.device), True)
    if batch:
        attend_backward_kernel[(triton.cdiv(heads, shape.block_h), batch)](
            x, positions.contiguous(), token, attention, grad_context,
            grad_scores, context, grad_absorbed,
            batch, scale, tokens, channels, heads, is_half, _precision(), **shape.options(),
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
    shape = grad_tokens_shape(tokens, heads, dx.dtype)
    tiles = triton.cdiv(tokens, shape.block_n)
    # Few samples: several programs share the channels of a tile of tokens.
    passes = triton.cdiv(channels, shape.block_c)
    wanted = triton.cdiv(2 * _processors(dx.device), max(1, tiles * batch))
    # Powers of two, so that a last, smaller batch seldom compiles anew.
    columns = triton.next_power_of_2(triton.cdiv(passes, min(wanted, passes))) * shape.block_c
    if batch:
        grad_tokens_kernel[(tiles, triton.cdiv(channels, columns), batch)](
            attention, grad_scores, grad_context.contiguous(), absorbed.contiguous(),
            grad_token.contiguous(), grad_first, dx, batch, tokens, channels, heads, _precision(),
            COLUMNS=columns, **shape.options(),
        )  # fmt: skip
    if not want_positions:
        return dx, grad_first.new_empty(0, channels)
    dp = grad_first.new_empty(rows, channels)
    torch.sum(grad_first, dim=0, out=dp[0])
    # dp_i = sum_b dt_i and dx_i = dt_i + dt_0 / N.
    torch.sub(dx.sum(dim=0, dtype=torch.float32), dp[0] / tokens, out=dp[1:])
    return dx, dp
