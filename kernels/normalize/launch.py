"""Fused L2 normalisation of rows in Triton, forward and backward.

One program holds whole rows in registers. Forward reads x once and writes y once, where
torch.nn.functional.normalize reads x twice and writes a norm between. Backward reads x and grad_y
once and writes grad_x once; eager autograd writes and reads four [B, D] temporaries on the way.
Serves GPUs where clipfast._C was built without CUDA. Legend: B rows, D elements a row.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

MAX_DIM = 65536  # a row is one tile; larger ones would spill
TILE = 4096  # elements a program holds, where rows are shorter than that

# (low, high) between which a sum of squares is accurate as it stands: below, squares have rounded
# to zero; above, they may have overflowed. Then the threshold under which a row counts as zero.
_RANGE = {
    torch.float32: (2.0**-100, torch.finfo(torch.float32).max, torch.finfo(torch.float32).tiny),
    torch.float64: (2.0**-900, torch.finfo(torch.float64).max, torch.finfo(torch.float64).tiny),
}


@triton.jit
def l2_normalize_kernel(
    x_ptr,  # [B, D] any float type, rows x_stride apart
    y_ptr,  # [B, D] any float type, rows contiguous
    inv_norm_ptr,  # [B] fp32, or fp64 when x is fp64
    rows,  # B
    x_stride,  # elements
    threshold,  # norms up to this count as zero
    D,
    LOW: tl.constexpr,
    HIGH: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """inv_norm = |x| > threshold ? 1 / |x| : 0;  y = x * inv_norm."""
    acc = inv_norm_ptr.dtype.element_ty
    row = tl.program_id(0).to(tl.int64) * BLOCK_B + tl.arange(0, BLOCK_B)
    column = tl.arange(0, BLOCK_D)
    mask = (row < rows)[:, None] & (column < D)[None, :]
    x = tl.load(x_ptr + row[:, None] * x_stride + column[None, :], mask=mask, other=0.0).to(acc)

    total = tl.sum(x * x, axis=1)
    # Rows of 1e30 or 1e-30 in fp32: divide by the largest entry before squaring. NaN fails both
    # comparisons and is scaled as well, which leaves it NaN.
    usable = (total >= LOW) & (total <= HIGH)
    largest = tl.max(tl.abs(x), axis=1)
    scale = tl.where(usable | (largest == 0.0), 1.0, largest)
    scaled = x / scale[:, None]
    norm = scale * tl.sqrt(tl.where(usable, total, tl.sum(scaled * scaled, axis=1)))
    # An infinite entry makes the scaled sum NaN; its norm is infinite.
    norm = tl.where(largest == float("inf"), largest, norm)
    norm = tl.where(total != total, total, norm)
    inv_norm = tl.where(norm <= threshold, 0.0, 1.0 / norm)

    y = (x * inv_norm[:, None]).to(y_ptr.dtype.element_ty)
    tl.store(y_ptr + row[:, None] * D + column[None, :], y, mask=mask)
    tl.store(inv_norm_ptr + row, inv_norm.to(acc), mask=row < rows)


@triton.jit
def l2_normalize_backward_kernel(
    grad_y_ptr,  # [B, D] any float type, rows grad_y_stride apart
    x_ptr,  # [B, D] any float type, rows x_stride apart
    inv_norm_ptr,  # [B] fp32, or fp64 when x is fp64
    grad_x_ptr,  # [B, D] the type of x, rows contiguous
    rows,  # B
    grad_y_stride,  # elements
    x_stride,  # elements
    D,
    BLOCK_B: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """u = x * inv_norm;  grad_x = (grad_y - u <u, grad_y>) * inv_norm."""
    acc = inv_norm_ptr.dtype.element_ty
    row = tl.program_id(0).to(tl.int64) * BLOCK_B + tl.arange(0, BLOCK_B)
    column = tl.arange(0, BLOCK_D)
    mask = (row < rows)[:, None] & (column < D)[None, :]
    x = tl.load(x_ptr + row[:, None] * x_stride + column[None, :], mask=mask, other=0.0)
    grad_y = tl.load(
        grad_y_ptr + row[:, None] * grad_y_stride + column[None, :], mask=mask, other=0.0
    ).to(acc)
    inv_norm = tl.load(inv_norm_ptr + row, mask=row < rows, other=0.0)[:, None]

    u = x.to(acc) * inv_norm
    dot = tl.sum(u * grad_y, axis=1)[:, None]
    grad_x = ((grad_y - u * dot) * inv_norm).to(grad_x_ptr.dtype.element_ty)
    tl.store(grad_x_ptr + row[:, None] * D + column[None, :], grad_x, mask=mask)


def tile_shape(dim: int) -> tuple[int, int, int]:
    """(BLOCK_B, BLOCK_D, num_warps) for rows of `dim` elements."""
    if dim > MAX_DIM:
        raise ValueError(f"expected rows of at most {MAX_DIM} elements, got {dim}")
    block_d = triton.next_power_of_2(max(dim, 1))
    block_b = max(1, min(64, TILE // block_d))
    # 32 elements a thread: 16-byte accesses, and a row of x and one of grad_y stay in registers.
    num_warps = min(32, max(4, block_b * block_d // 1024))
    return block_b, block_d, num_warps


def _adjacent(t: torch.Tensor) -> torch.Tensor:
    return t if t.shape[1] <= 1 or t.stride(1) == 1 else t.contiguous()


def launch_l2_normalize(
    x: torch.Tensor, eps: float, out_dtype: torch.dtype | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Launches the forward kernel.

    Args:
        x: [B, D], fp16, bf16, fp32 or fp64.
        eps: rows whose norm is at most this, or the smallest normal number, give zeros.
        out_dtype: type of y; that of x where None.

    Returns:
        y [B, D] and inv_norm [B] (fp32; fp64 for fp64 x).

    Raises:
        ValueError: rows longer than MAX_DIM.
    """
    x = _adjacent(x)
    rows, dim = x.shape
    acc = torch.float64 if x.dtype == torch.float64 else torch.float32
    y = torch.empty((rows, dim), dtype=out_dtype or x.dtype, device=x.device)
    inv_norm = torch.empty(rows, dtype=acc, device=x.device)
    block_b, block_d, num_warps = tile_shape(dim)
    if rows > 0:
        low, high, tiny = _RANGE[acc]
        l2_normalize_kernel[(triton.cdiv(rows, block_b),)](
            x,
            y,
            inv_norm,
            rows,
            x.stride(0),
            max(eps, tiny),
            dim,
            LOW=low,
            HIGH=high,
            BLOCK_B=block_b,
            BLOCK_D=block_d,
            num_warps=num_warps,
        )
    return y, inv_norm


def launch_l2_normalize_backward(
    grad_y: torch.Tensor, x: torch.Tensor, inv_norm: torch.Tensor
) -> torch.Tensor:
    """Launches the backward kernel.

    Args:
        grad_y: [B, D], the type of y.
        x: [B, D], as given to the forward.
        inv_norm: [B], as returned by the forward.

    Returns:
        grad_x [B, D], the type of x.

    Raises:
        ValueError: rows longer than MAX_DIM.
    """
    grad_y, x = _adjacent(grad_y), _adjacent(x)
    rows, dim = x.shape
    grad_x = torch.empty((rows, dim), dtype=x.dtype, device=x.device)
    block_b, block_d, num_warps = tile_shape(dim)
    if rows > 0:
        l2_normalize_backward_kernel[(triton.cdiv(rows, block_b),)](
            grad_y,
            x,
            inv_norm,
            grad_x,
            rows,
            grad_y.stride(0),
            x.stride(0),
            dim,
            BLOCK_B=block_b,
            BLOCK_D=block_d,
            num_warps=num_warps,
        )
    return grad_x
