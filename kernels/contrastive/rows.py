"""Row operators of the contrastive loss in Triton: before, beside and after the products.

One program holds whole rows in registers, so each operator reads its matrices once and writes its
results once, with no temporary of [B, D] in between. Bytes a feature element, half-precision work:

    prepare     reads x, writes work                 e + 2      (torch: 4 passes over fp32 copies)
    diagonal    reads x and y                        2 e
    finish      reads grad, x and other, writes      4 + 3 e    (torch: 6 temporaries of [B, D])

with e bytes an element of the feature itself. All sums are fp32 (fp64 for fp64 features). Legend: B
rows, D elements a row; u, f, p_i and the rest as in clipfast/ops/contrastive.py.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from clipfast.kernels.normalize.launch import _RANGE, _adjacent, tile_shape


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
    LOW: tl.constexpr,
    HIGH: tl.constexpr,
    BLOCK_B: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """work = x 2^-e, e = floor(log2 |x|);  inverse_norm = 1/|x|;  factor = 1/|work|;  norm = |u|.

    Not NORMALIZE: work = x, inverse_norm = factor = 1, norm = |x|. Zero rows: zeros."""
    acc: tl.constexpr = inverse_norm_ptr.dtype.element_ty
    row = tl.program_id(0).to(tl.int64) * BLOCK_B + tl.arange(0, BLOCK_B)
    column = tl.arange(0, BLOCK_D)
    mask = (row < rows)[:, None] & (column < D)[None, :]
    raw = tl.load(x_ptr + row[:, None] * x_stride + column[None, :], mask=mask, other=0.0)
    x = raw.to(acc)

    total = tl.sum(x * x, axis=1)
    # As in l2_normalize: where squares overflow or vanish, divide by the largest entry first.
    usable = (total >= LOW) & (total <= HIGH)
    largest = tl.max(tl.abs(x), axis=1)
    scaled = x / tl.where(usable | (largest == 0.0), 1.0, largest)[:, None]
    norm = tl.sqrt(tl.where(usable, total, tl.sum(scaled * scaled, axis=1)))
    norm = tl.where(usable | (largest == 0.0), norm, norm * largest)
    norm = tl.where(largest == float("inf"), largest, norm)
    norm = tl.where(total != total, total, norm)

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
    row = tl.program_id(0).to(tl.int64) * BLOCK_B + tl.arange(0, BLOCK_B)
    column = tl.arange(0, BLOCK_D)
    mask = (row < rows)[:, None] & (column < D)[None, :]
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
    row = tl.program_id(0).to(tl.int64) * BLOCK_B + tl.arange(0, BLOCK_B)
    column = tl.arange(0, BLOCK_D)
    mask = (row < rows)[:, None] & (column < D)[None, :]
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


def finish_shape(dim: int) -> tuple[int, int, int]:
    """(BLOCK_B, BLOCK_D, num_warps) of finish, which holds three rows where others hold one or two:
    16 elements of each a thread, so that fp64 rows stay in registers too."""
    block_b, block_d, num_warps = tile_shape(dim)
    return block_b, block_d, min(32, 2 * num_warps)


def launch_prepare(
    x: torch.Tensor, normalize: bool, work_dtype: torch.dtype | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Launches the kernel that splits features into work features and factors.

    Args:
        x: [B, D], fp16, bf16, fp32 or fp64; read in place where a row's elements are adjacent.
        normalize: whether u is x scaled to length 1, or x itself.
        work_dtype: type of the work features; None where the caller uses x itself.

    Returns:
        work [B, D] (shape [0] without work_dtype), inverse_norm [B], factor [B], norm [B], the last
        three in fp32 (fp64 for fp64 x).

    Raises:
        ValueError: rows longer than 65,536.
    """
    x = _adjacent(x)
    rows, dim = x.shape
    acc = torch.float64 if x.dtype == torch.float64 else torch.float32
    work = x.new_empty(0) if work_dtype is None else x.new_empty((rows, dim), dtype=work_dtype)
    inverse_norm, factor, norm = (x.new_empty(rows, dtype=acc) for _ in range(3))
    block_b, block_d, num_warps = tile_shape(dim)
    if rows > 0:
        low, high, tiny = _RANGE[acc]
        prepare_kernel[(triton.cdiv(rows, block_b),)](
            x,
            None if work_dtype is None else work,
            inverse_norm,
            factor,
            norm,
            rows,
            x.stride(0),
            tiny,
            dim,
            NORMALIZE=normalize,
            LOW=low,
            HIGH=high,
            BLOCK_B=block_b,
            BLOCK_D=block_d,
            num_warps=num_warps,
        )
    return work, inverse_norm, factor, norm


def launch_diagonal(
    x: torch.Tensor,
    y: torch.Tensor,
    x_inverse_norm: torch.Tensor,
    y_inverse_norm: torch.Tensor,
) -> torch.Tensor:
    """Launches the kernel of the pairs' cosines.

    Args:
        x, y: [B, D], one float type; read in place where a row's elements are adjacent.
        x_inverse_norm, y_inverse_norm: [B], as prepare returns them.

    Returns:
        cosine [B], the type of x_inverse_norm.

    Raises:
        ValueError: rows longer than 65,536.
    """
    x, y = _adjacent(x), _adjacent(y)
    rows, dim = x.shape
    cosine = torch.empty_like(x_inverse_norm, memory_format=torch.contiguous_format)
    block_b, block_d, num_warps = tile_shape(dim)
    if rows > 0:
        diagonal_kernel[(triton.cdiv(rows, block_b),)](
            x,
            y,
            x_inverse_norm.contiguous(),
            y_inverse_norm.contiguous(),
            cosine,
            rows,
            x.stride(0),
            y.stride(0),
            dim,
            BLOCK_B=block_b,
            BLOCK_D=block_d,
            num_warps=num_warps,
        )
    return cosine


def launch_finish(
    grad: torch.Tensor,
    x: torch.Tensor,
    other: torch.Tensor,
    inverse_norm: torch.Tensor,
    other_inverse_norm: torch.Tensor,
    factor: torch.Tensor,
    diagonal: torch.Tensor,
    coefficient: torch.Tensor,
    normalize: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Launches the kernel that turns a product into the feature's gradient.

    Args:
        grad: [B, D] fp32 (fp64 for fp64 x), row_grad or the reduced column_grad.
        x, other: [B, D], one float type: the features, and those of their pairs.
        inverse_norm, other_inverse_norm, factor: [B], as prepare returns them.
        diagonal: [B], P of the pairs.
        coefficient: one element.
        normalize: as given to prepare.

    Returns:
        grad_x [B, D], the type of x, and dot [B], the type of grad.

    Raises:
        ValueError: rows longer than 65,536.
    """
    grad, x, other = grad.contiguous(), _adjacent(x), _adjacent(other)
    rows, dim = x.shape
    grad_x = torch.empty((rows, dim), dtype=x.dtype, device=x.device)
    dot = torch.empty(rows, dtype=grad.dtype, device=x.device)
    block_b, block_d, num_warps = finish_shape(dim)
    if rows > 0:
        vectors = (inverse_norm, other_inverse_norm, factor, diagonal)
        finish_kernel[(triton.cdiv(rows, block_b),)](
            grad,
            x,
            other,
            *(vector.contiguous() for vector in vectors),
            coefficient,
            grad_x,
            dot,
            rows,
            x.stride(0),
            other.stride(0),
            dim,
            NORMALIZE=normalize,
            BLOCK_B=block_b,
            BLOCK_D=block_d,
            num_warps=num_warps,
        )
    return grad_x, dot
