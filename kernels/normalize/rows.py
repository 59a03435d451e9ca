"""Fused L2 normalisation of rows in Triton, forward and backward.

One program holds whole rows in registers. Forward reads x once and writes y once, where
torch.nn.functional.normalize reads x twice and writes a norm between. Backward reads x and grad_y
once and writes grad_x once; eager autograd writes and reads four [B, D] temporaries on the way.
Serves GPUs where clipfast._C was built without CUDA. Legend: B rows, D elements per row.
"""

from __future__ import annotations

import triton
import triton.language as tl

from clipfast.kernels.common.rows import row_norms, row_places


@triton.jit
def l2_normalize_kernel(
    x_ptr,  # [B, D] any float type, rows x_stride apart
    y_ptr,  # [B, D] any float type, rows contiguous
    inv_norm_ptr,  # [B] fp32, or fp64 when x is fp64
    rows,  # B
    x_stride,  # elements
    threshold,  # norms up to this count as zero
    D,
    BLOCK_B: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """inv_norm = |x| > threshold ? 1 / |x| : 0;  y = x * inv_norm."""
    acc = inv_norm_ptr.dtype.element_ty
    row, column, mask = row_places(rows, D, BLOCK_B, BLOCK_D)
    x = tl.load(x_ptr + row[:, None] * x_stride + column[None, :], mask=mask, other=0.0).to(acc)

    norm = row_norms(x)
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
    row, column, mask = row_places(rows, D, BLOCK_B, BLOCK_D)
    x = tl.load(x_ptr + row[:, None] * x_stride + column[None, :], mask=mask, other=0.0)
    grad_y = tl.load(
        grad_y_ptr + row[:, None] * grad_y_stride + column[None, :], mask=mask, other=0.0
    ).to(acc)
    inv_norm = tl.load(inv_norm_ptr + row, mask=row < rows, other=0.0)[:, None]

    u = x.to(acc) * inv_norm
    dot = tl.sum(u * grad_y, axis=1)[:, None]
    grad_x = ((grad_y - u * dot) * inv_norm).to(grad_x_ptr.dtype.element_ty)
    tl.store(grad_x_ptr + row[:, None] * D + column[None, :], grad_x, mask=mask)
