"""Products of the contrastive loss with the softmax statistics and weights fused in, in Triton.

Statistics: a GEMM whose epilogue turns each tile of logits into exponentials and sums them along
rows and along columns, so one pass over S (2BGD FLOP, B + G numbers out) serves both directions; a
logits matrix in fp32 would be written once and read twice, 12BG bytes, and each half of the loss
would form its own exponentials. Partial sums of tiles go to a small workspace and are added in a
fixed order: no atomics, the same bits on every run. One shift serves every row and column, so there
is one exponential an element and sums of tiles simply add; where that shift does not fit the data,
kernels that are always launched and otherwise return at once sum again by true maxima. The host
never waits for the device.

Gradients: for a wave of rows, a GEMM with the epilogue S -> Q, written once in the work type (2BG
bytes at 2BGD FLOP, or 4BG bytes and no GEMM from kept logits), then two library GEMMs that read it
where it lies (4BGD FLOP), accumulating in fp32. Memory is bounded by the wave.

Legend: B rows (images of this rank, or of one wave), G columns (texts of all ranks), D width, T
tiles along the other dimension. S, Q and the operators as in clipfast/ops/contrastive.py. For sm_80
and newer; launched by kernels/contrastive.
"""

from __future__ import annotations

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)
MARGIN = tl.constexpr(87.0)  # natural units between the largest sum and fp32's overflow at 88.7
LEAST_SUM = tl.constexpr(2.0**-100)  # smaller sums may have lost terms to underflow
LEVELS = tl.constexpr(32767.0)  # steps of a kept int16 logit from 0 to the bound
ROUND = tl.constexpr(12582912.0)  # 1.5 * 2^23: what is added to it is rounded to an integer


@triton.jit
def _fixed_shift(bound, log_columns):
    """a = max(0, bound - 87 + ln G): no sum of G terms exp(S - a) overflows."""
    return tl.maximum(bound - MARGIN + log_columns, 0.0)


@triton.jit
def _tile_origin(
    tile, rows, columns, BLOCK_B: tl.constexpr, BLOCK_G: tl.constexpr, GROUP: tl.constexpr
):
    """(first row, first column): GROUP row tiles advance together and share columns in L2."""
    row_tiles = tl.cdiv(rows, BLOCK_B)
    column_tiles = tl.cdiv(columns, BLOCK_G)
    first = tile // (GROUP * column_tiles) * GROUP
    size = tl.minimum(row_tiles - first, GROUP)
    place = tile % (GROUP * column_tiles)
    return (first + place % size) * BLOCK_B, place // size * BLOCK_G


@triton.jit
def _logits(
    x_ptr,
    y_ptr,
    row_factor_ptr,
    column_factor_ptr,
    scale_ptr,
    row,
    column,
    rows,
    columns,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """s f_i g_j <x_i, y_j> log2(e) in fp32: 2^it is exp(S). Arbitrary values out of range."""
    depth = tl.arange(0, BLOCK_D)
    # Rows out of range repeat the last one, which costs no mask in the loop.
    x_ptrs = x_ptr + tl.minimum(row, rows - 1).to(tl.int64)[:, None] * D + depth[None, :]
    y_ptrs = y_ptr + tl.minimum(column, columns - 1).to(tl.int64)[None, :] * D + depth[:, None]
    products = tl.zeros([row.shape[0], column.shape[0]], tl.float32)
    for start in range(0, D, BLOCK_D):
        if D % BLOCK_D == 0:
            x = tl.load(x_ptrs)
            y = tl.load(y_ptrs)
        else:
            x = tl.load(x_ptrs, mask=(depth < D - start)[None, :], other=0.0)
            y = tl.load(y_ptrs, mask=(depth < D - start)[:, None], other=0.0)
        products = tl.dot(x, y, products, input_precision=PRECISION)
        x_ptrs += BLOCK_D
        y_ptrs += BLOCK_D
    row_factor = tl.load(row_factor_ptr + row, mask=row < rows, other=0.0)
    column_factor = tl.load(column_factor_ptr + column, mask=column < columns, other=0.0)
    row_scale = row_factor * (tl.load(scale_ptr) * LOG2E)
    return products * row_scale[:, None] * column_factor[None, :]


@triton.jit
def _leave_out(tile, value, first_row, first_column, rows, columns, pair_offset):
    """`tile`, with `value` at the pairs and out of range. Most tiles hold neither."""
    BLOCK_B: tl.constexpr = tile.shape[0]
    BLOCK_G: tl.constexpr = tile.shape[1]
    first_pair = first_row + pair_offset - first_column
    has_pairs = (first_pair < BLOCK_G) & (first_pair > -BLOCK_B)
    is_edge = (first_row + BLOCK_B > rows) | (first_column + BLOCK_G > columns)
    if has_pairs | is_edge:
        row = first_row + tl.arange(0, BLOCK_B)
        column = first_column + tl.arange(0, BLOCK_G)
        is_inside = (row < rows)[:, None] & (column < columns)[None, :]
        is_pair = (row + pair_offset)[:, None] == column[None, :]
        tile = tl.where(is_inside & (is_pair == 0), tile, value)
    return tile


@triton.jit(do_not_specialize=["rows", "first_column"])
def statistics_kernel(
    x_ptr,  # [B, D] fp16, bf16 or fp32, contiguous
    y_ptr,  # [G, D] the type of x, contiguous
    row_factor_ptr,  # [B] fp32
    column_factor_ptr,  # [G] fp32
    scale_ptr,  # one element fp32
    bound_ptr,  # one element fp32
    kept_ptr,  # [B, G] int16 for half features, fp32 for fp32; or None: nothing is kept
    row_partial_ptr,  # [T, B] fp32, T column tiles
    column_partial_ptr,  # [T, G] fp32, T row tiles
    rows,  # B
    columns,  # G
    first_column,  # column of the pair of row 0
    log_columns,  # ln G
    D: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_D: tl.constexpr,
    GROUP: tl.constexpr,
):
    """A tile's sums of exp(S - a) along rows and along columns, pairs left out.

    kept = rint(S * 32767 / bound) as int16, or S itself in fp32."""
    row0, column0 = _tile_origin(tl.program_id(0), rows, columns, BLOCK_B, BLOCK_G, GROUP)
    row = row0 + tl.arange(0, BLOCK_B)
    column = column0 + tl.arange(0, BLOCK_G)
    logits = _logits(
        x_ptr, y_ptr, row_factor_ptr, column_factor_ptr, scale_ptr,
        row, column, rows, columns, D, BLOCK_D, PRECISION,
    )  # fmt: skip
    bound = tl.load(bound_ptr)
    if kept_ptr is not None:
        offset = row.to(tl.int64)[:, None] * columns + column[None, :]
        mask = (row < rows)[:, None] & (column < columns)[None, :]
        if kept_ptr.dtype.element_ty == tl.int16:
            levels = tl.where(bound > 1e-30, LN2 * LEVELS / bound, 0.0)
            level = tl.minimum(tl.maximum(logits * levels, -LEVELS), LEVELS)
            # The rounded integer is in the low bits: no conversion instruction is needed.
            kept = (level + ROUND).to(tl.int32, bitcast=True).to(tl.int16)
        else:
            kept = logits * LN2
        tl.store(kept_ptr + offset, kept, mask=mask)

    terms = tl.exp2(logits - _fixed_shift(bound, log_columns) * LOG2E)
    terms = _leave_out(terms, 0.0, row0, column0, rows, columns, first_column)
    row_partial = row_partial_ptr + (column0 // BLOCK_G).to(tl.int64) * rows
    column_partial = column_partial_ptr + (row0 // BLOCK_B).to(tl.int64) * columns
    tl.store(row_partial + row, tl.sum(terms, axis=1), mask=row < rows)
    tl.store(column_partial + column, tl.sum(terms, axis=0), mask=column < columns)


@triton.jit(do_not_specialize=["tiles", "length"])
def add_partials_kernel(
    partial_ptr,  # [T, N] fp32
    sum_ptr,  # [N] fp32
    max_ptr,  # [N] fp32
    bound_ptr,  # one element fp32
    tiles,  # T
    length,  # N
    log_columns,  # ln G
    ACCUMULATE: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """sum = sum over T of partial (+ sum, where earlier waves wrote it);  max = a."""
    place = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    total = tl.zeros([BLOCK_N], tl.float32)
    if ACCUMULATE:
        total = tl.load(sum_ptr + place, mask=place < length, other=0.0)
    for start in range(0, tiles, BLOCK_T):
        tile = start + tl.arange(0, BLOCK_T)
        mask = (tile < tiles)[:, None] & (place < length)[None, :]
        offset = tile.to(tl.int64)[:, None] * length + place[None, :]
        total += tl.sum(tl.load(partial_ptr + offset, mask=mask, other=0.0), axis=0)
    tl.store(sum_ptr + place, total, mask=place < length)
    shift = tl.zeros([BLOCK_N], tl.float32) + _fixed_shift(tl.load(bound_ptr), log_columns)
    tl.store(max_ptr + place, shift, mask=place < length)


@triton.jit(do_not_specialize=["rows", "columns"])
def shift_kernel(
    row_sum_ptr,  # [B] fp32
    column_sum_ptr,  # [G] fp32
    bound_ptr,  # one element fp32
    shift_ptr,  # one element fp32
    rows,  # B
    columns,  # G
    log_columns,  # ln G
    BLOCK: tl.constexpr,
):
    """shift = a where every sum is in [2^-100, inf), NaN otherwise."""
    failures = tl.zeros([BLOCK], tl.int32)
    for start in range(0, rows, BLOCK):
        place = start + tl.arange(0, BLOCK)
        total = tl.load(row_sum_ptr + place, mask=place < rows, other=1.0)
        failures += tl.where((total >= LEAST_SUM) & (total < float("inf")), 0, 1)
    for start in range(0, columns, BLOCK):
        place = start + tl.arange(0, BLOCK)
        total = tl.load(column_sum_ptr + place, mask=place < columns, other=1.0)
        failures += tl.where((total >= LEAST_SUM) & (total < float("inf")), 0, 1)
    shift = _fixed_shift(tl.load(bound_ptr), log_columns)
    tl.store(shift_ptr, tl.where(tl.sum(failures, axis=0) == 0, shift, float("nan")))


@triton.jit(do_not_specialize=["rows", "first_column", "programs"])
def maxima_kernel(
    x_ptr,  # [B, D] fp16, bf16 or fp32, contiguous
    y_ptr,  # [G, D] the type of x, contiguous
    row_factor_ptr,  # [B] fp32
    column_factor_ptr,  # [G] fp32
    scale_ptr,  # one element fp32
    shift_ptr,  # one element fp32
    row_partial_ptr,  # [2, T, B] fp32: maxima, then sums; T column tiles
    column_partial_ptr,  # [2, T, G] fp32; T row tiles
    rows,  # B
    columns,  # G
    first_column,  # column of the pair of row 0
    programs,  # programs launched
    D: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_D: tl.constexpr,
    GROUP: tl.constexpr,
):
    """Tiles' (m, sum 2^(S log2(e) - m)) along rows and columns, where the fixed shift failed.

    Few programs take many tiles each, so that returning at once costs next to nothing."""
    shift = tl.load(shift_ptr)
    if shift == shift:
        return
    row_tiles = tl.cdiv(rows, BLOCK_B)
    column_tiles = tl.cdiv(columns, BLOCK_G)
    for tile in range(tl.program_id(0), row_tiles * column_tiles, programs):
        row0, column0 = _tile_origin(tile, rows, columns, BLOCK_B, BLOCK_G, GROUP)
        row = row0 + tl.arange(0, BLOCK_B)
        column = column0 + tl.arange(0, BLOCK_G)
        logits = _logits(
            x_ptr, y_ptr, row_factor_ptr, column_factor_ptr, scale_ptr,
            row, column, rows, columns, D, BLOCK_D, PRECISION,
        )  # fmt: skip
        logits = _leave_out(logits, float("-inf"), row0, column0, rows, columns, first_column)

        largest = tl.max(logits, axis=1)
        terms = tl.exp2(logits - tl.where(largest == float("-inf"), 0.0, largest)[:, None])
        partial = row_partial_ptr + (column0 // BLOCK_G).to(tl.int64) * rows + row
        tl.store(partial, largest, mask=row < rows)
        partial += column_tiles.to(tl.int64) * rows
        tl.store(partial, tl.sum(terms, axis=1), mask=row < rows)

        largest = tl.max(logits, axis=0)
        terms = tl.exp2(logits - tl.where(largest == float("-inf"), 0.0, largest)[None, :])
        partial = column_partial_ptr + (row0 // BLOCK_B).to(tl.int64) * columns + column
        tl.store(partial, largest, mask=column < columns)
        partial += row_tiles.to(tl.int64) * columns
        tl.store(partial, tl.sum(terms, axis=0), mask=column < columns)


@triton.jit(do_not_specialize=["tiles", "length"])
def combine_maxima_kernel(
    partial_ptr,  # [2, T, N] fp32: maxima of S log2(e), then sums
    sum_ptr,  # [N] fp32
    max_ptr,  # [N] fp32
    shift_ptr,  # one element fp32
    tiles,  # T
    length,  # N
    ACCUMULATE: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """max = ln(2) max_t m_t;  sum = sum_t sum_t 2^(m_t - max_t m_t). No terms at all: 0 and 0."""
    shift = tl.load(shift_ptr)
    if shift == shift:
        return
    place = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    largest = tl.full([BLOCK_N], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_N], tl.float32)
    if ACCUMULATE:
        total = tl.load(sum_ptr + place, mask=place < length, other=0.0)
        # Earlier waves were whole tiles, so at least one of their terms was no pair.
        largest = tl.load(max_ptr + place, mask=place < length, other=0.0) * LOG2E
    for start in range(0, tiles, BLOCK_T):
        tile = start + tl.arange(0, BLOCK_T)
        mask = (tile < tiles)[:, None] & (place < length)[None, :]
        offset = tile.to(tl.int64)[:, None] * length + place[None, :]
        maxima = tl.load(partial_ptr + offset, mask=mask, other=float("-inf"))
        offset += tiles.to(tl.int64) * length
        sums = tl.load(partial_ptr + offset, mask=mask, other=0.0)
        updated = tl.maximum(largest, tl.max(maxima, axis=0))
        reference = tl.where(updated == float("-inf"), 0.0, updated)
        total *= tl.exp2(largest - reference)
        total += tl.sum(sums * tl.exp2(maxima - reference[None, :]), axis=0)
        largest = updated
    largest = tl.where(largest == float("-inf"), 0.0, largest * LN2)
    tl.store(sum_ptr + place, total, mask=place < length)
    tl.store(max_ptr + place, largest, mask=place < length)


@triton.jit
def _store_weights(
    logits,
    q_ptr,
    row_factor_ptr,
    column_factor_ptr,
    row_lse_ptr,
    column_lse_ptr,
    shift_ptr,
    row0,
    column0,
    rows,
    columns,
    first_column,
    q_stride,
    Q_SCALE: tl.constexpr,
):
    """Q = (exp(S - row_lse) + exp(S - column_lse)) f g Q_SCALE, 0 for pairs, from S log2(e)."""
    row = row0 + tl.arange(0, logits.shape[0])
    column = column0 + tl.arange(0, logits.shape[1])
    row_lse = tl.load(row_lse_ptr + row, mask=row < rows, other=0.0) * LOG2E
    column_lse = tl.load(column_lse_ptr + column, mask=column < columns, other=0.0) * LOG2E
    shift = tl.load(shift_ptr) * LOG2E
    if shift == shift:
        row_weight, column_weight = tl.exp2(shift - row_lse), tl.exp2(shift - column_lse)
        q = tl.exp2(logits - shift) * (row_weight[:, None] + column_weight[None, :])
    else:
        q = tl.exp2(logits - row_lse[:, None]) + tl.exp2(logits - column_lse[None, :])
    f = tl.load(row_factor_ptr + row, mask=row < rows, other=0.0) * Q_SCALE
    g = tl.load(column_factor_ptr + column, mask=column < columns, other=0.0)
    q = q * f[:, None] * g[None, :]
    q = _leave_out(q, 0.0, row0, column0, rows, columns, first_column)
    mask = (row < rows)[:, None] & (column < columns)[None, :]
    offset = row.to(tl.int64)[:, None] * q_stride + column[None, :]
    tl.store(q_ptr + offset, q.to(q_ptr.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["rows", "first_column"])
def weights_kernel(
    x_ptr,  # [B, D] fp16, bf16 or fp32, contiguous
    y_ptr,  # [G, D] the type of x, contiguous
    row_factor_ptr,  # [B] fp32
    column_factor_ptr,  # [G] fp32
    scale_ptr,  # one element fp32
    shift_ptr,  # one element fp32
    row_lse_ptr,  # [B] fp32
    column_lse_ptr,  # [G] fp32
    q_ptr,  # [B, G] the type of x, rows q_stride apart
    rows,  # B
    columns,  # G
    first_column,  # column of the pair of row 0
    q_stride,  # elements
    D: tl.constexpr,
    Q_SCALE: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_D: tl.constexpr,
    GROUP: tl.constexpr,
):
    """Q Q_SCALE from the features: S = s f g <x, y>, then as in _store_weights."""
    row0, column0 = _tile_origin(tl.program_id(0), rows, columns, BLOCK_B, BLOCK_G, GROUP)
    row = row0 + tl.arange(0, BLOCK_B)
    column = column0 + tl.arange(0, BLOCK_G)
    logits = _logits(
        x_ptr, y_ptr, row_factor_ptr, column_factor_ptr, scale_ptr,
        row, column, rows, columns, D, BLOCK_D, PRECISION,
    )  # fmt: skip
    _store_weights(
        logits, q_ptr, row_factor_ptr, column_factor_ptr, row_lse_ptr, column_lse_ptr,
        shift_ptr, row0, column0, rows, columns, first_column, q_stride, Q_SCALE,
    )  # fmt: skip


@triton.jit(do_not_specialize=["rows", "first_column"])
def kept_weights_kernel(
    kept_ptr,  # [B, G] int16: S * 32767 / bound; or fp32: S
    row_factor_ptr,  # [B] fp32
    column_factor_ptr,  # [G] fp32
    bound_ptr,  # one element fp32
    shift_ptr,  # one element fp32
    row_lse_ptr,  # [B] fp32
    column_lse_ptr,  # [G] fp32
    q_ptr,  # [B, G] fp16, bf16 or fp32, rows q_stride apart
    rows,  # B
    columns,  # G
    first_column,  # column of the pair of row 0
    q_stride,  # elements
    Q_SCALE: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_G: tl.constexpr,
):
    """Q Q_SCALE from kept logits, as in _store_weights."""
    column_tiles = tl.cdiv(columns, BLOCK_G)
    row0 = tl.program_id(0) // column_tiles * BLOCK_B
    column0 = tl.program_id(0) % column_tiles * BLOCK_G
    row = row0 + tl.arange(0, BLOCK_B)
    column = column0 + tl.arange(0, BLOCK_G)
    mask = (row < rows)[:, None] & (column < columns)[None, :]
    offset = row.to(tl.int64)[:, None] * columns + column[None, :]
    unit = LOG2E
    if kept_ptr.dtype.element_ty == tl.int16:
        unit = tl.load(bound_ptr) * (LOG2E / LEVELS)
    logits = tl.load(kept_ptr + offset, mask=mask, other=0).to(tl.float32) * unit
    _store_weights(
        logits, q_ptr, row_factor_ptr, column_factor_ptr, row_lse_ptr, column_lse_ptr,
        shift_ptr, row0, column0, rows, columns, first_column, q_stride, Q_SCALE,
    )  # fmt: skip
