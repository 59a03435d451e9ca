"""Tiles of the strip: their order, their logits, and what is left out of them.

Legend: B rows (images of this rank, or of one wave), G columns (texts of all ranks), D width. S as
in clipfast/ops/contrastive.
"""

from __future__ import annotations

import triton
import triton.language as tl

from clipfast.kernels.contrastive.constants import LOG2E


@triton.jit
def tile_origin(
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
def tile_logits(
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
def has_left_out(
    row0, column0, rows, columns, first_column, BLOCK_B: tl.constexpr, BLOCK_G: tl.constexpr
):
    """Whether the tile at (row0, column0) holds pairs or places out of range. Most hold neither."""
    first_pair = row0 + first_column - column0
    has_pairs = (first_pair < BLOCK_G) & (first_pair > -BLOCK_B)
    return has_pairs | (row0 + BLOCK_B > rows) | (column0 + BLOCK_G > columns)


@triton.jit
def counted(row, column, rows, columns, first_column):
    """Whether (row, column) adds to sums: in range, and no pair."""
    is_inside = (row < rows)[:, None] & (column < columns)[None, :]
    is_pair = (row + first_column)[:, None] == column[None, :]
    return is_inside & (is_pair == 0)


@triton.jit
def leave_out(tile, value, row0, column0, rows, columns, first_column):
    """`tile`, with `value` at the pairs and out of range."""
    BLOCK_B: tl.constexpr = tile.shape[0]
    BLOCK_G: tl.constexpr = tile.shape[1]
    if has_left_out(row0, column0, rows, columns, first_column, BLOCK_B, BLOCK_G):
        row = row0 + tl.arange(0, BLOCK_B)
        column = column0 + tl.arange(0, BLOCK_G)
        tile = tl.where(counted(row, column, rows, columns, first_column), tile, value)
    return tile
