"""The walk over the strip of logits with a rule's terms and weights fused in, in Triton.

Sums: a GEMM whose epilogue turns each tile of logits into the rule's terms and sums them along rows
and along columns. One pass over S (2BGD FLOP, B + G numbers out) serves both directions. A logits
matrix in fp32 would be written once and read twice, 12BG bytes, and each half of the loss would
form its own terms. Partial sums of tiles go to a small workspace and are added in a fixed order: no
atomics, the same bits on every run. The host never waits for the device.

Weights: for a wave of rows, a GEMM with the epilogue S -> Q, written once in the work type (2BG
bytes at 2BGD FLOP, or 4BG bytes and no GEMM from kept logits). Two library GEMMs then read it where
it lies (4BGD FLOP), accumulating in fp32 (walk.py). Memory is bounded by the wave.

Legend: B rows (images of this rank, or of one wave), G columns (texts of all ranks), D width, T
tiles along the other dimension. S, Q and the operators as in clipfast/ops/contrastive. BASE, TERMS
and WEIGHTS are the functions of a rule (rule.py). For sm_80 and newer; launched by walk.py.
"""

from __future__ import annotations

import triton
import triton.language as tl

from clipfast.kernels.contrastive.constants import KEPT_STEPS, LN2, LOG2E
from clipfast.kernels.contrastive.tiles import (
    counted,
    has_left_out,
    leave_out,
    tile_logits,
    tile_origin,
)

ROUND = tl.constexpr(12582912.0)  # 1.5 * 2^23: what is added to it is rounded to an integer


@triton.jit(do_not_specialize=["rows", "first_column"])
def statistics_kernel(
    x_ptr,  # [B, D] fp16, bf16 or fp32, contiguous
    y_ptr,  # [G, D] the type of x, contiguous
    row_factor_ptr,  # [B] fp32
    column_factor_ptr,  # [G] fp32
    scale_ptr,  # one element fp32
    bound_ptr,  # one element fp32
    numbers_ptr,  # the rule's own numbers, or None
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
    BASE: tl.constexpr,
    TERMS: tl.constexpr,
):
    """A tile's sums of the rule's terms along rows and along columns, pairs left out.

    kept = rint(S * 32767 / bound) as int16, or S itself in fp32."""
    row0, column0 = tile_origin(tl.program_id(0), rows, columns, BLOCK_B, BLOCK_G, GROUP)
    row = row0 + tl.arange(0, BLOCK_B)
    column = column0 + tl.arange(0, BLOCK_G)
    logits = tile_logits(
        x_ptr, y_ptr, row_factor_ptr, column_factor_ptr, scale_ptr,
        row, column, rows, columns, D, BLOCK_D, PRECISION,
    )  # fmt: skip
    bound = tl.load(bound_ptr)
    if kept_ptr is not None:
        offset = row.to(tl.int64)[:, None] * columns + column[None, :]
        mask = (row < rows)[:, None] & (column < columns)[None, :]
        if kept_ptr.dtype.element_ty == tl.int16:
            steps = tl.where(bound > 1e-30, LN2 * KEPT_STEPS / bound, 0.0)
            step = tl.minimum(tl.maximum(logits * steps, -KEPT_STEPS), KEPT_STEPS)
            # The rounded integer is in the low bits: no conversion instruction is needed.
            kept = (step + ROUND).to(tl.int32, bitcast=True).to(tl.int16)
        else:
            kept = logits * LN2
        tl.store(kept_ptr + offset, kept, mask=mask)

    row_terms, column_terms = TERMS(logits, BASE(bound, log_columns), numbers_ptr)
    if has_left_out(row0, column0, rows, columns, first_column, BLOCK_B, BLOCK_G):
        is_counted = counted(row, column, rows, columns, first_column)
        row_terms = tl.where(is_counted, row_terms, 0.0)
        column_terms = tl.where(is_counted, column_terms, 0.0)
    row_partial = row_partial_ptr + (column0 // BLOCK_G).to(tl.int64) * rows
    column_partial = column_partial_ptr + (row0 // BLOCK_B).to(tl.int64) * columns
    tl.store(row_partial + row, tl.sum(row_terms, axis=1), mask=row < rows)
    tl.store(column_partial + column, tl.sum(column_terms, axis=0), mask=column < columns)


@triton.jit(do_not_specialize=["tiles", "length"])
def add_partials_kernel(
    partial_ptr,  # [T, N] fp32
    sum_ptr,  # [N] fp32
    base_ptr,  # [N] fp32
    bound_ptr,  # one element fp32
    tiles,  # T
    length,  # N
    log_columns,  # ln G
    ACCUMULATE: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BASE: tl.constexpr,
):
    """sum = sum over T of partial (+ sum, where earlier waves wrote it);  base = BASE."""
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
    base = tl.zeros([BLOCK_N], tl.float32) + BASE(tl.load(bound_ptr), log_columns)
    tl.store(base_ptr + place, base, mask=place < length)


@triton.jit
def _store_weights(
    logits,
    q_ptr,
    row_factor_ptr,
    column_factor_ptr,
    row_value_ptr,
    column_value_ptr,
    base_ptr,
    numbers_ptr,
    row0,
    column0,
    rows,
    columns,
    first_column,
    q_stride,
    Q_SCALE: tl.constexpr,
    WEIGHTS: tl.constexpr,
):
    """Q = P f g Q_SCALE, 0 for pairs; P are the rule's weights."""
    row = row0 + tl.arange(0, logits.shape[0])
    column = column0 + tl.arange(0, logits.shape[1])
    row_value = tl.load(row_value_ptr + row, mask=row < rows, other=0.0)
    column_value = tl.load(column_value_ptr + column, mask=column < columns, other=0.0)
    q = WEIGHTS(logits, row_value, column_value, tl.load(base_ptr), numbers_ptr)
    f = tl.load(row_factor_ptr + row, mask=row < rows, other=0.0) * Q_SCALE
    g = tl.load(column_factor_ptr + column, mask=column < columns, other=0.0)
    q = q * f[:, None] * g[None, :]
    q = leave_out(q, 0.0, row0, column0, rows, columns, first_column)
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
    base_ptr,  # one element fp32
    numbers_ptr,  # the rule's own numbers, or None
    row_value_ptr,  # [B] fp32
    column_value_ptr,  # [G] fp32
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
    WEIGHTS: tl.constexpr,
):
    """Q Q_SCALE from the features: S = s f g <x, y>, then as in _store_weights."""
    row0, column0 = tile_origin(tl.program_id(0), rows, columns, BLOCK_B, BLOCK_G, GROUP)
    row = row0 + tl.arange(0, BLOCK_B)
    column = column0 + tl.arange(0, BLOCK_G)
    logits = tile_logits(
        x_ptr, y_ptr, row_factor_ptr, column_factor_ptr, scale_ptr,
        row, column, rows, columns, D, BLOCK_D, PRECISION,
    )  # fmt: skip
    _store_weights(
        logits, q_ptr, row_factor_ptr, column_factor_ptr, row_value_ptr, column_value_ptr,
        base_ptr, numbers_ptr, row0, column0, rows, columns, first_column, q_stride,
        Q_SCALE, WEIGHTS,
    )  # fmt: skip


@triton.jit(do_not_specialize=["rows", "first_column"])
def kept_weights_kernel(
    kept_ptr,  # [B, G] int16: S * 32767 / bound; or fp32: S
    row_factor_ptr,  # [B] fp32
    column_factor_ptr,  # [G] fp32
    bound_ptr,  # one element fp32
    base_ptr,  # one element fp32
    numbers_ptr,  # the rule's own numbers, or None
    row_value_ptr,  # [B] fp32
    column_value_ptr,  # [G] fp32
    q_ptr,  # [B, G] fp16, bf16 or fp32, rows q_stride apart
    rows,  # B
    columns,  # G
    first_column,  # column of the pair of row 0
    q_stride,  # elements
    Q_SCALE: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_G: tl.constexpr,
    WEIGHTS: tl.constexpr,
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
        unit = tl.load(bound_ptr) * (LOG2E / KEPT_STEPS)
    logits = tl.load(kept_ptr + offset, mask=mask, other=0).to(tl.float32) * unit
    _store_weights(
        logits, q_ptr, row_factor_ptr, column_factor_ptr, row_value_ptr, column_value_ptr,
        base_ptr, numbers_ptr, row0, column0, rows, columns, first_column, q_stride,
        Q_SCALE, WEIGHTS,
    )  # fmt: skip
