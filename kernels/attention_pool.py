"""The steps of attention pooling that read tokens, fused in Triton.

The mean token is one pass over x. Forward: a program owns one sample and a block of heads, forms
the scores of all tokens and of the mean token, their softmax, and the context, without a key, a
value or a [B, N + 1, C] tensor: positions are added in registers. Its second read of x comes soon
after the first, and the programs of one sample run side by side, so L2 serves most of it. Backward
is the same walk with dctx in place of a: dA, dS, then ctx again and da from one read of x. dx is
one GEMM a sample whose two products and the mean token's share meet in one accumulator: it is
written once.

Not measured on a GPU. Tile shapes are chosen from `ptxas -v`: no spilled register in half precision
(in fp32 up to 128 tokens), and shared memory within what sm_86 grants, the least of those served.
tests/ops/test_attention_pool_triton.py keeps it so.

Legend: B samples, N tokens, C channels, H heads. Row 0 of what has N + 1 rows is the mean token's.
The algebra is in clipfast/ops/attention_pool.py. For sm_80 and newer.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl

MAX_TOKENS = 256  # scores of all tokens are one tile
LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def mean_token_kernel(
    x_ptr,  # [B, N, C] fp16, bf16 or fp32, contiguous
    positions_ptr,  # [N + 1, C] any float type, contiguous
    token_ptr,  # [B, C] fp32, contiguous
    N: tl.constexpr,
    C: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """t_0 = mean_i x_i + p_0."""
    sample = tl.program_id(1).to(tl.int64)
    column = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    row = tl.arange(0, BLOCK_N)
    x_ptr += sample * N * C
    total = tl.zeros([BLOCK_N, BLOCK_C], tl.float32)
    for start in range(0, N, BLOCK_N):
        mask = (start + row < N)[:, None] & (column < C)[None, :]
        offset = (start + row)[:, None] * C + column[None, :]
        total += tl.load(x_ptr + offset, mask=mask, other=0.0).to(tl.float32)
    first = tl.load(positions_ptr + column, mask=column < C, other=0.0).to(tl.float32)
    tl.store(token_ptr + sample * C + column, tl.sum(total, axis=0) / N + first, mask=column < C)


@triton.jit
def _tokens(x_ptr, positions_ptr, offset, mask, C: tl.constexpr, IS_WHOLE: tl.constexpr):
    """t_i = x_i + p_i for i >= 1, rounded to the type of x as a tensor-core operand."""
    if IS_WHOLE:
        x = tl.load(x_ptr + offset)
        position = tl.load(positions_ptr + C + offset)
    else:
        x = tl.load(x_ptr + offset, mask=mask, other=0.0)
        position = tl.load(positions_ptr + C + offset, mask=mask, other=0.0)
    return (x.to(tl.float32) + position.to(tl.float32)).to(x.dtype)


@triton.jit
def _products(
    x_ptr,
    positions_ptr,
    token_ptr,
    vector_ptr,
    row,
    vector_row,
    C: tl.constexpr,
    BLOCK_C: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """v_h . t_i [rows, heads] and v_h . t_0 [heads] of one sample, in fp32."""
    depth = tl.arange(0, BLOCK_C)
    products = tl.zeros([row.shape[0], vector_row.shape[0]], tl.float32)
    first = tl.zeros([vector_row.shape[0]], tl.float32)
    for start in range(0, C, BLOCK_C):
        column = start + depth
        inside = column < C
        offset = row[:, None] * C + column[None, :]
        t = _tokens(x_ptr, positions_ptr, offset, inside[None, :], C, C % BLOCK_C == 0)
        if C % BLOCK_C == 0:
            vector = tl.load(vector_ptr + vector_row[None, :] + column[:, None])
            token = tl.load(token_ptr + column)
        else:
            vector_ptrs = vector_ptr + vector_row[None, :] + column[:, None]
            vector = tl.load(vector_ptrs, mask=inside[:, None], other=0.0)
            token = tl.load(token_ptr + column, mask=inside, other=0.0)
        products = tl.dot(t, vector, products, input_precision=PRECISION)
        first += tl.sum(vector.to(tl.float32) * token[:, None], axis=0)
    return products, first


@triton.jit
def _store_context(context_ptr, offset, mask, context, part_stride, IS_SPLIT: tl.constexpr):
    """ctx as the sum of two numbers of its type, or as it is in fp32."""
    high = context.to(context_ptr.dtype.element_ty)
    tl.store(context_ptr + offset, high, mask=mask)
    if IS_SPLIT:
        low = (context - high.to(tl.float32)).to(high.dtype)
        tl.store(context_ptr + part_stride + offset, low, mask=mask)


@triton.jit(do_not_specialize=["batch"])
def attend_kernel(
    x_ptr,  # [B, N, C] fp16, bf16 or fp32, contiguous
    positions_ptr,  # [N + 1, C] any float type, contiguous
    token_ptr,  # [B, C] fp32, contiguous
    absorbed_ptr,  # [H, B, C] the type of x, contiguous
    attention_ptr,  # [H, B, N + 1] fp32, contiguous
    context_ptr,  # [H, P, B, C] the type of x, contiguous; P = 2 for half precision
    batch,  # B
    scale,  # 1 / sqrt(d)
    N: tl.constexpr,
    C: tl.constexpr,
    H: tl.constexpr,
    IS_SPLIT: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """A = softmax_i(scale a . t_i);  ctx = sum_i A_i t_i.  One sample, BLOCK_H heads."""
    sample = tl.program_id(1).to(tl.int64)
    head = tl.program_id(0) * BLOCK_H + tl.arange(0, BLOCK_H)
    # Heads and tokens out of range repeat the last one, which costs no mask in the loops.
    near_head = tl.minimum(head, H - 1).to(tl.int64)
    row = tl.arange(0, BLOCK_N)
    near_row = tl.minimum(row, N - 1)
    x_ptr += sample * N * C
    token_ptr += sample * C
    size = batch.to(tl.int64) * C

    scores, first = _products(
        x_ptr, positions_ptr, token_ptr, absorbed_ptr + sample * C,
        near_row, near_head * size, C, BLOCK_C, PRECISION,
    )  # fmt: skip
    scores = tl.where((row < N)[:, None], scores * (scale * LOG2E), float("-inf"))
    first = first * (scale * LOG2E)
    largest = tl.maximum(tl.max(scores, axis=0), first)
    scores = tl.exp2(scores - largest[None, :])
    first = tl.exp2(first - largest)
    inverse = 1.0 / (tl.sum(scores, axis=0) + first)
    attention = scores * inverse[None, :]
    first = first * inverse
    attention_row = (head.to(tl.int64) * batch + sample) * (N + 1)
    tl.store(attention_ptr + attention_row, first, mask=head < H)
    mask = (row < N)[:, None] & (head < H)[None, :]
    tl.store(attention_ptr + attention_row[None, :] + 1 + row[:, None], attention, mask=mask)

    weights = attention.to(x_ptr.dtype.element_ty)
    parts: tl.constexpr = 2 if IS_SPLIT else 1
    for start in range(0, C, BLOCK_C):
        column = start + tl.arange(0, BLOCK_C)
        inside = column < C
        # Transposed, so that what is computed in registers is a product's left operand.
        offset = near_row[None, :] * C + column[:, None]
        t = _tokens(x_ptr, positions_ptr, offset, inside[:, None], C, C % BLOCK_C == 0)
        token = tl.load(token_ptr + column, mask=inside, other=0.0)
        context = tl.dot(t, weights, input_precision=PRECISION) + token[:, None] * first[None, :]
        place = head.to(tl.int64)[None, :] * (parts * size) + sample * C + column[:, None]
        wanted = inside[:, None] & (head < H)[None, :]
        _store_context(context_ptr, place, wanted, context, size, IS_SPLIT)


@triton.jit(do_not_specialize=["batch"])
def attend_backward_kernel(
    x_ptr,  # [B, N, C] fp16, bf16 or fp32, contiguous
    positions_ptr,  # [N + 1, C] any float type, contiguous
    token_ptr,  # [B, C] fp32, contiguous
    attention_ptr,  # [H, B, N + 1] fp32, contiguous
    grad_context_ptr,  # [H, B, C] the type of x, contiguous
    grad_scores_ptr,  # [H, B, N + 1] fp32, contiguous
    context_ptr,  # [H, P, B, C] the type of x, contiguous; P = 2 for half precision
    grad_absorbed_ptr,  # [H, B, C] the type of x, contiguous
    batch,  # B
    scale,  # 1 / sqrt(d)
    N: tl.constexpr,
    C: tl.constexpr,
    H: tl.constexpr,
    IS_SPLIT: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """dA_i = dctx . t_i;  dS = scale A (dA - <A, dA>);  ctx = sum_i A_i t_i;  da = sum_i dS_i t_i.

    One sample, BLOCK_H heads."""
    sample = tl.program_id(1).to(tl.int64)
    head = tl.program_id(0) * BLOCK_H + tl.arange(0, BLOCK_H)
    near_head = tl.minimum(head, H - 1).to(tl.int64)
    row = tl.arange(0, BLOCK_N)
    near_row = tl.minimum(row, N - 1)
    x_ptr += sample * N * C
    token_ptr += sample * C
    size = batch.to(tl.int64) * C

    grad, grad_first = _products(
        x_ptr, positions_ptr, token_ptr, grad_context_ptr + sample * C,
        near_row, near_head * size, C, BLOCK_C, PRECISION,
    )  # fmt: skip
    mask = (row < N)[:, None] & (head < H)[None, :]
    attention_row = (head.to(tl.int64) * batch + sample) * (N + 1)
    place = attention_row[None, :] + 1 + row[:, None]
    attention = tl.load(attention_ptr + place, mask=mask, other=0.0)
    first = tl.load(attention_ptr + attention_row, mask=head < H, other=0.0)
    inner = tl.sum(attention * grad, axis=0) + first * grad_first
    grad = attention * (grad - inner[None, :]) * scale
    grad_first = first * (grad_first - inner) * scale
    tl.store(grad_scores_ptr + attention_row, grad_first, mask=head < H)
    tl.store(grad_scores_ptr + place, grad, mask=mask)

    weights = attention.to(x_ptr.dtype.element_ty)
    grad_weights = grad.to(x_ptr.dtype.element_ty)
    parts: tl.constexpr = 2 if IS_SPLIT else 1
    for start in range(0, C, BLOCK_C):
        column = start + tl.arange(0, BLOCK_C)
        inside = column < C
        offset = near_row[None, :] * C + column[:, None]
        t = _tokens(x_ptr, positions_ptr, offset, inside[:, None], C, C % BLOCK_C == 0)
        token = tl.load(token_ptr + column, mask=inside, other=0.0)[:, None]
        wanted = inside[:, None] & (head < H)[None, :]
        within = sample * C + column[:, None]
        context = tl.dot(t, weights, input_precision=PRECISION) + token * first[None, :]
        context_row = head.to(tl.int64)[None, :] * (parts * size)
        _store_context(context_ptr, context_row + within, wanted, context, size, IS_SPLIT)
        grad_a = tl.dot(t, grad_weights, input_precision=PRECISION) + token * grad_first[None, :]
        grad_a = grad_a.to(grad_absorbed_ptr.dtype.element_ty)
        tl.store(
            grad_absorbed_ptr + head.to(tl.int64)[None, :] * size + within, grad_a, mask=wanted
        )


@triton.jit(do_not_specialize=["batch"])
def grad_tokens_kernel(
    attention_ptr,  # [H, B, N + 1] fp32, contiguous
    grad_scores_ptr,  # [H, B, N + 1] fp32, contiguous
    grad_context_ptr,  # [H, B, C] the type of dx, contiguous
    absorbed_ptr,  # [H, B, C] the type of dx, contiguous
    grad_token_ptr,  # [B, C] the type of dx, contiguous
    grad_first_ptr,  # [B, C] fp32, contiguous
    dx_ptr,  # [B, N, C] fp16, bf16 or fp32, contiguous
    batch,  # B
    N: tl.constexpr,
    C: tl.constexpr,
    H: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_C: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """dx_i = sum_h A_i dctx + dS_i a + dt_0 / N, and dt_0 = sum_h A_0 dctx + dS_0 a + g.

    BLOCK_N tokens of one sample, whose weights stay while COLUMNS channels pass."""
    sample = tl.program_id(2).to(tl.int64)
    row = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    head = tl.arange(0, BLOCK_H)
    near_head = tl.minimum(head, H - 1).to(tl.int64)
    size = batch.to(tl.int64) * C
    # All heads are one tile; the weights of those out of range are 0.
    attention_row = (near_head * batch + sample) * (N + 1)
    place = attention_row[None, :] + 1 + row[:, None]
    mask = (row < N)[:, None] & (head < H)[None, :]
    operand = dx_ptr.dtype.element_ty
    attention = tl.load(attention_ptr + place, mask=mask, other=0.0).to(operand)
    grad_scores = tl.load(grad_scores_ptr + place, mask=mask, other=0.0).to(operand)
    first = tl.load(attention_ptr + attention_row, mask=head < H, other=0.0)
    grad_score = tl.load(grad_scores_ptr + attention_row, mask=head < H, other=0.0)

    begin = tl.program_id(1) * COLUMNS
    vector_row = near_head[:, None] * size + sample * C
    for start in range(0, COLUMNS, BLOCK_C):
        column = begin + start + tl.arange(0, BLOCK_C)
        inside = column < C
        offset = vector_row + column[None, :]
        grad_context = tl.load(grad_context_ptr + offset, mask=inside[None, :], other=0.0)
        absorbed = tl.load(absorbed_ptr + offset, mask=inside[None, :], other=0.0)
        grad_token = tl.load(grad_token_ptr + sample * C + column, mask=inside, other=0.0)
        total = tl.dot(attention, grad_context, input_precision=PRECISION)
        total = tl.dot(grad_scores, absorbed, total, input_precision=PRECISION)
        of_first = first[:, None] * grad_context.to(tl.float32)
        of_first += grad_score[:, None] * absorbed.to(tl.float32)
        grad_first = tl.sum(of_first, axis=0) + grad_token.to(tl.float32)
        if tl.program_id(0) == 0:
            tl.store(grad_first_ptr + sample * C + column, grad_first, mask=inside)
        dx = (total + grad_first[None, :] / N).to(operand)
        within = sample * N * C + row[:, None] * C + column[None, :]
        tl.store(dx_ptr + within, dx, mask=(row < N)[:, None] & inside[None, :])


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
