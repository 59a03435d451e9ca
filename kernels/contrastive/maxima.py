"""The softmax's sums by true maxima, for data that no single shift serves, in Triton.

A sum relative to one shift for the whole strip can underflow where a row's logits are all far below
the bound. `shift_kernel` looks at the sums and writes NaN in place of the shift where one failed.
The other two kernels are always launched, so that the host need not wait for that answer. They
return at once where the shift stands, and sum again by each row's and column's largest logit where
it does not.

Legend as in strip.py.
"""

from __future__ import annotations

import triton
import triton.language as tl

from clipfast.kernels.contrastive.constants import LN2, LOG2E, SMALLEST_SUM
from clipfast.kernels.contrastive.softmax_rule import softmax_base
from clipfast.kernels.contrastive.tiles import leave_out, tile_logits, tile_origin


@triton.jit
def _count_failures(failures, sums_ptr, length, BLOCK: tl.constexpr):
    """failures [BLOCK], with the sums outside [2^-100, inf) counted on top."""
    for start in range(0, length, BLOCK):
        place = start + tl.arange(0, BLOCK)
        total = tl.load(sums_ptr + place, mask=place < length, other=1.0)
        failures += tl.where((total >= SMALLEST_SUM) & (total < float("inf")), 0, 1)
    return failures


@triton.jit
def _finite(largest):
    """Maxima of nothing are -inf; zero in their place keeps differences defined."""
    return tl.where(largest == float("-inf"), 0.0, largest)


@triton.jit
def _store_sums(partial_ptr, tile, tiles, place, length, logits, axis: tl.constexpr):
    """A tile's m = max S log2(e) and sum 2^(S log2(e) - m) along an axis, to [2, tiles, length]."""
    largest = tl.max(logits, axis=axis)
    terms = tl.exp2(logits - tl.expand_dims(_finite(largest), axis))
    partial = partial_ptr + tile.to(tl.int64) * length + place
    tl.store(partial, largest, mask=place < length)
    partial += tiles.to(tl.int64) * length
    tl.store(partial, tl.sum(terms, axis=axis), mask=place < length)


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
    failures = _count_failures(failures, row_sum_ptr, rows, BLOCK)
    failures = _count_failures(failures, column_sum_ptr, columns, BLOCK)
    shift = softmax_base(tl.load(bound_ptr), log_columns)
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
        row0, column0 = tile_origin(tile, rows, columns, BLOCK_B, BLOCK_G, GROUP)
        row = row0 + tl.arange(0, BLOCK_B)
        column = column0 + tl.arange(0, BLOCK_G)
        logits = tile_logits(
            x_ptr, y_ptr, row_factor_ptr, column_factor_ptr, scale_ptr,
            row, column, rows, columns, D, BLOCK_D, PRECISION,
        )  # fmt: skip
        logits = leave_out(logits, float("-inf"), row0, column0, rows, columns, first_column)

        _store_sums(row_partial_ptr, column0 // BLOCK_G, column_tiles, row, rows, logits, 1)
        _store_sums(column_partial_ptr, row0 // BLOCK_B, row_tiles, column, columns, logits, 0)


@triton.jit(do_not_specialize=["tiles", "length"])
def combine_maxima_kernel(
    partial_ptr,  # [2, T, N] fp32: maxima m of S log2(e), then sums s
    sum_ptr,  # [N] fp32
    base_ptr,  # [N] fp32
    shift_ptr,  # one element fp32
    tiles,  # T
    length,  # N
    ACCUMULATE: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """base = ln(2) max_t m_t;  sum = sum_t s_t 2^(m_t - max_t m_t).  No terms at all: 0 and 0."""
    shift = tl.load(shift_ptr)
    if shift == shift:
        return
    place = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    largest = tl.full([BLOCK_N], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_N], tl.float32)
    if ACCUMULATE:
        total = tl.load(sum_ptr + place, mask=place < length, other=0.0)
        # Earlier waves were whole tiles, so at least one of their terms was no pair.
        largest = tl.load(base_ptr + place, mask=place < length, other=0.0) * LOG2E
    for start in range(0, tiles, BLOCK_T):
        tile = start + tl.arange(0, BLOCK_T)
        mask = (tile < tiles)[:, None] & (place < length)[None, :]
        offset = tile.to(tl.int64)[:, None] * length + place[None, :]
        maxima = tl.load(partial_ptr + offset, mask=mask, other=float("-inf"))
        offset += tiles.to(tl.int64) * length
        sums = tl.load(partial_ptr + offset, mask=mask, other=0.0)
        updated = tl.maximum(largest, tl.max(maxima, axis=0))
        base = _finite(updated)
        total *= tl.exp2(largest - base)
        total += tl.sum(sums * tl.exp2(maxima - base[None, :]), axis=0)
        largest = updated
    tl.store(sum_ptr + place, total, mask=place < length)
    tl.store(base_ptr + place, _finite(largest * LN2), mask=place < length)
