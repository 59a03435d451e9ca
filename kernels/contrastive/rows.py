"""Row operators of the contrastive loss in Triton: before, beside and after the products.

One program holds whole rows in registers, so each operator reads its matrices once and writes its
results once, with no temporary of [B, D] in between. Bytes per feature element, with work features
in half precision:

    prepare     reads x, writes work                 e + 2      (torch: 4 passes over fp32 copies)
    diagonal    reads x and y                        2 e
    finish      reads grad, x and other, writes      4 + 3 e    (torch: 6 temporaries of [B, D])

with e bytes per element of the feature itself. All sums are fp32 (fp64 for fp64 features). Legend:
B rows, D elements per row; u, f, p_i and the rest as in clipfast/ops/contrastive.
"""

from __future__ import annotations

import triton
import triton.language as tl

from clipfast.kernels.common.rows import row_norms, row_places


@triton.jit
def _power_of_two(exponent, acc: tl.constexpr):
    """2^exponent, exact, for exponents of normal numbers."""
    if acc == tl.float64:
        return ((exponent.to(tl.int64) + 1023) << 52).to(tl.float64, bitcast=True)
    else:
        return ((exponent + 127) << 23).to(tl.float32, bitcast=True)


@triton.jit
def _exponent(norm, acc: tl.constexpr):
    """floor(log2(norm)) for normal positive numbers, from their bits."""
    if acc == tl.float64:
        return (((norm.to(tl.int64, bitcast=True) >> 52) & 2047) - 1023).to(tl.int32)
    else:
        return ((norm.to(tl.int32, bitcast=True) >> 23) & 255) - 127


@triton.jit
def prepare_kernel(
    x_ptr,  # [B, D] any float type, rows x_stride apart
    work_ptr,  # [B, D] work type, rows contiguous; or None: nothing is written
    inverse_norm_ptr,  # [B] fp32, or fp64 when x is fp64
    factor_ptr,  # [B] likewise
    norm_ptr,  # [B] likewise
    rows,  # B
    x_stride,  # elements
    threshold,  # norms up to this count as zero
    D,
    NORMALIZE: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """work = x 2^-e, e = floor(log2 |x|);  inverse_norm = 1/|x|;  factor = 1/|work|;  norm = |u|.

    Not NORMALIZE: work = x, inverse_norm = factor = 1, norm = |x|. Zero rows: zeros."""
    acc: tl.constexpr = inverse_norm_ptr.dtype.element_ty
    row, column, mask = row_places(rows, D, BLOCK_B, BLOCK_D)
    x = tl.load(x_ptr + row[:, None] * x_stride + column[None, :], mask=mask, other=0.0).to(acc)

    norm = row_norms(x)
    if NORMALIZE:
        is_zero = norm <= threshold
        inverse_norm = tl.where(is_zero, 0.0, 1.0 / norm)
        factor = inverse_norm
        if work_ptr is not None:
            is_scalable = (norm > threshold) & (norm < float("inf"))
            exponent = tl.where(is_scalable, _exponent(norm, acc), 0)
            # Two steps: 2^-127 is no normal number in fp32.
            step = exponent >> 1
            first, second = _power_of_two(-step, acc), _power_of_two(step - exponent, acc)
            factor = tl.where(is_zero, 0.0, 1.0 / (norm * first * second))
            x = x * first[:, None] * second[:, None]
        norm = tl.where(is_zero, 0.0, norm * inverse_norm)
    else:
        inverse_norm = tl.full([BLOCK_B], 1.0, acc)
        factor = inverse_norm
    if work_ptr is not None:
        work = x.to(work_ptr.dtype.element_ty)
        tl.store(work_ptr + row[:, None] * D + column[None, :], work, mask=mask)
    tl.store(inverse_norm_ptr + row, inverse_norm.to(acc), mask=row < rows)
    tl.store(factor_ptr + row, factor.to(acc), mask=row < rows)
    tl.store(norm_ptr + row, norm.to(acc), mask=row < rows)


@triton.jit
def diagonal_kernel(
    x_ptr,  # [B, D] any float type, rows x_stride apart
    y_ptr,  # [B, D] any float type, rows y_stride apart
    x_inverse_norm_ptr,  # [B] fp32, or fp64 when x is fp64
    y_inverse_norm_ptr,  # [B] likewise
    cosine_ptr,  # [B] likewise
    rows,  # B
    x_stride,  # elements
    y_stride,  # elements
    D,
    BLOCK_B: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """cosine = sum_d (x * x_inverse_norm) * (y * y_inverse_norm)."""
    acc = cosine_ptr.dtype.element_ty
    row, column, mask = row_places(rows, D, BLOCK_B, BLOCK_D)
    x = tl.load(x_ptr + row[:, None] * x_stride + column[None, :], mask=mask, other=0.0)
    y = tl.load(y_ptr + row[:, None] * y_stride + column[None, :], mask=mask, other=0.0)
    x_inverse_norm = tl.load(x_inverse_norm_ptr + row, mask=row < rows, other=0.0)[:, None]
    y_inverse_norm = tl.load(y_inverse_norm_ptr + row, mask=row < rows, other=0.0)[:, None]
    # Each is scaled before the product: 1e30 times 1e30 would overflow.
    cosine = tl.sum((x.to(acc) * x_inverse_norm) * (y.to(acc) * y_inverse_norm), axis=1)
    tl.store(cosine_ptr + row, cosine, mask=row < rows)


@triton.jit
def finish_kernel(
    grad_ptr,  # [B, D] fp32, or fp64 when x is fp64; rows contiguous
    x_ptr,  # [B, D] any float type, rows x_stride apart
    other_ptr,  # [B, D] any float type, rows other_stride apart: the pairs of x
    inverse_norm_ptr,  # [B] the type of grad
    other_inverse_norm_ptr,  # [B] likewise
    factor_ptr,  # [B] likewise
    diagonal_ptr,  # [B] likewise: P of the pairs
    coefficient_ptr,  # one element, likewise
    grad_x_ptr,  # [B, D] the type of x, rows contiguous
    dot_ptr,  # [B] the type of grad
    rows,  # B
    x_stride,  # elements
    other_stride,  # elements
    D,
    NORMALIZE: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """dU = grad/f + diagonal * other * other_inverse_norm;  dot = <u, dU> with u = x inverse_norm;
    grad_x = coefficient * (dU - u dot) * inverse_norm, or coefficient * dU."""
    acc = grad_ptr.dtype.element_ty
    row, column, mask = row_places(rows, D, BLOCK_B, BLOCK_D)
    grad = tl.load(grad_ptr + row[:, None] * D + column[None, :], mask=mask, other=0.0)
    x = tl.load(x_ptr + row[:, None] * x_stride + column[None, :], mask=mask, other=0.0)
    other = tl.load(other_ptr + row[:, None] * other_stride + column[None, :], mask=mask, other=0.0)
    inverse_norm = tl.load(inverse_norm_ptr + row, mask=row < rows, other=0.0)
    other_inverse_norm = tl.load(other_inverse_norm_ptr + row, mask=row < rows, other=0.0)
    factor = tl.load(factor_ptr + row, mask=row < rows, other=0.0)
    diagonal = tl.load(diagonal_ptr + row, mask=row < rows, other=0.0)
    coefficient = tl.load(coefficient_ptr)

    unit = x.to(acc) * inverse_norm[:, None]
    inverse_factor = tl.where(factor == 0.0, 0.0, 1.0 / factor)
    pair = other.to(acc) * other_inverse_norm[:, None]
    grad_unit = grad * inverse_factor[:, None] + diagonal[:, None] * pair
    dot = tl.sum(unit * grad_unit, axis=1)
    if NORMALIZE:
        grad_unit = (grad_unit - unit * dot[:, None]) * inverse_norm[:, None]
    grad_x = (coefficient * grad_unit).to(grad_x_ptr.dtype.element_ty)
    tl.store(grad_x_ptr + row[:, None] * D + column[None, :], grad_x, mask=mask)
    tl.store(dot_ptr + row, dot, mask=row < rows)
