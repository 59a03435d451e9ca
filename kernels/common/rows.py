"""Kernels that hold whole rows: their tile, its place in memory, and the norm of a row.

A row is one tile, so each kernel reads its matrices once. Legend: B rows, D elements per row.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from clipfast.kernels.common.constants import SMALLEST_SQUARES, SMALLEST_SQUARES_DOUBLE
from clipfast.kernels.common.device import FUSED

MAX_DIM = 65536  # a row is one tile; larger ones would spill
TILE = 4096  # elements a program holds, where rows are shorter than that


class RowTile(NamedTuple):
    """Rows and elements of a program, and the warps that work on them."""

    block_b: int
    block_d: int
    num_warps: int

    def grid(self, rows: int) -> tuple[int]:
        """The launch's grid for B rows."""
        return (triton.cdiv(rows, self.block_b),)

    def options(self) -> dict[str, int]:
        """The launch's keyword arguments."""
        tile = {"BLOCK_B": self.block_b, "BLOCK_D": self.block_d}
        return {**tile, "num_warps": self.num_warps, **FUSED}


def tile_shape(dim: int) -> RowTile:
    """The tile of a kernel that holds one or two rows per row of its result.

    Args:
        dim: D, elements per row.

    Returns:
        The tile.

    Raises:
        ValueError: rows longer than MAX_DIM.
    """
    if dim > MAX_DIM:
        raise ValueError(f"expected rows of at most {MAX_DIM} elements, got {dim}")
    block_d = triton.next_power_of_2(max(dim, 1))
    block_b = max(1, min(64, TILE // block_d))
    # 32 elements per thread: 16-byte accesses, and a row of x and one of grad_y stay in registers.
    return RowTile(block_b, block_d, min(32, max(4, block_b * block_d // 1024)))


def sum_dtype(dtype: torch.dtype) -> torch.dtype:
    """The type that sums over elements of `dtype` are held in."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def with_adjacent_elements(matrix: torch.Tensor) -> torch.Tensor:
    """The matrix itself where each row's elements are adjacent, or a copy."""
    is_adjacent = matrix.shape[1] <= 1 or matrix.stride(1) == 1
    return matrix if is_adjacent else matrix.contiguous()


@triton.jit
def row_places(rows, D, BLOCK_B: tl.constexpr, BLOCK_D: tl.constexpr):
    """The program's rows [BLOCK_B], its columns [BLOCK_D], and which of its elements exist."""
    row = tl.program_id(0).to(tl.int64) * BLOCK_B + tl.arange(0, BLOCK_B)
    column = tl.arange(0, BLOCK_D)
    return row, column, (row < rows)[:, None] & (column < D)[None, :]


@triton.jit
def row_norms(x):
    """|x| of each row of a tile in fp32 or fp64, accurate from the smallest norm to the largest.

    An infinite entry gives an infinite norm, a NaN gives NaN."""
    smallest: tl.constexpr = SMALLEST_SQUARES_DOUBLE if x.dtype == tl.float64 else SMALLEST_SQUARES
    total = tl.sum(x * x, axis=1)
    # Rows of 1e30 or 1e-30 in fp32: divide by the largest entry before squaring. NaN fails both
    # comparisons and is scaled as well, which leaves it NaN.
    usable = (total >= smallest) & (total < float("inf"))
    largest = tl.max(tl.abs(x), axis=1)
    scale = tl.where(usable | (largest == 0.0), 1.0, largest)
    scaled = x / scale[:, None]
    squares = tl.where(usable, total, tl.sum(scaled * scaled, axis=1))
    # tl.sqrt of fp32 is an approximation on a GPU: a norm of 4 can fall short of 4.
    norm = scale * (tl.sqrt(squares) if x.dtype == tl.float64 else tl.sqrt_rn(squares))
    # An infinite entry makes the scaled sum NaN; its norm is infinite.
    norm = tl.where(largest == float("inf"), largest, norm)
    return tl.where(total != total, total, norm)
