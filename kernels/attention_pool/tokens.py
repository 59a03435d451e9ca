"""The Triton kernels of attention pooling: the steps that read tokens.

The mean token is one pass over x. Forward: a program owns one sample and a block of heads, forms
the scores of all tokens and of the mean token, their softmax, and the context, without a key, a
value or a [B, N + 1, C] tensor: positions are added in registers. Its second read of x comes soon
after the first, and the programs of one sample run side by side, so L2 serves most of it. Backward
is the same walk with dctx in place of a: dA, dS, then ctx again and da from one read of x. dx is
one GEMM per sample, whose two products and the mean token's share meet in one accumulator: it is
written once.

Legend: B samples, N tokens, C channels, H heads. Row 0 of what has N + 1 rows is the mean token's.
The algebra is in clipfast/ops/attention_pool, the launches in launch.py.
"""

from __future__ import annotations

import triton
import triton.language as tl

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


@triton.jit
def _places(N: tl.constexpr, H: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_H: tl.constexpr):
    """The program's sample, its heads and the sample's tokens; heads and tokens in range as well.

    Those out of range repeat the last one, which costs no mask in the loops."""
    head = tl.program_id(0) * BLOCK_H + tl.arange(0, BLOCK_H)
    row = tl.arange(0, BLOCK_N)
    near_head = tl.minimum(head, H - 1).to(tl.int64)
    return tl.program_id(1).to(tl.int64), head, near_head, row, tl.minimum(row, N - 1)


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
    sample, head, near_head, row, near_row = _places(N, H, BLOCK_N, BLOCK_H)
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
    sample, head, near_head, row, near_row = _places(N, H, BLOCK_N, BLOCK_H)
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
