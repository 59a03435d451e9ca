"""Launchers of the contrastive operators in Triton.

Statistics and gradients are the walk over the strip (walk.py) with the softmax's rule
(softmax_rule.py) and its fallback (maxima.py). Prepare, diagonal and finish are the row kernels
(rows.py). The operators are described in clipfast/ops/contrastive. Legend: B rows, G columns, D
width. For sm_80 and newer. Nothing here waits for the device.
"""

from __future__ import annotations

import torch

from clipfast.kernels.common.device import FUSED, processors
from clipfast.kernels.common.rows import sum_dtype, tile_shape, with_adjacent_elements
from clipfast.kernels.contrastive import maxima, walk
from clipfast.kernels.contrastive.configs import finish_tile
from clipfast.kernels.contrastive.rows import diagonal_kernel, finish_kernel, prepare_kernel
from clipfast.kernels.contrastive.softmax_rule import SOFTMAX
from clipfast.kernels.contrastive.walk import Strip, Sums
from clipfast.kernels.contrastive.waves import partial_waves, partials


def launch_statistics(
    x: torch.Tensor,
    y: torch.Tensor,
    row_factor: torch.Tensor,
    column_factor: torch.Tensor,
    scale: torch.Tensor,
    bound: torch.Tensor,
    first_column: int,
    keep: bool,
    workspace_bytes: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Launches the kernels of sum_j exp(S_ij) and sum_i exp(S_ij), pairs left out.

    Args:
        x: [B, D] fp16, bf16 or fp32.
        y: [G, D], the type of x.
        row_factor: [B] fp32.
        column_factor: [G] fp32.
        scale: one element fp32.
        bound: one element fp32, at least every |S_ij|.
        first_column: column of the pair of row 0.
        keep: whether logits are stored for gradients.
        workspace_bytes: limit of the partial sums' memory (at least one tile of rows is taken).

    Returns:
        row_max [B], row_sum [B], column_max [G], column_sum [G], shift [1], all fp32, and kept
        [B, G]: int16 for half x, fp32 for fp32 x (shape [0] without keep).
    """
    factors = (row_factor, column_factor, scale, bound)
    strip = Strip(x.contiguous(), y.contiguous(), *factors, first_column)
    sums, kept = walk.sum_terms(strip, SOFTMAX, keep, workspace_bytes)
    shift = x.new_empty(1, dtype=torch.float32)
    maxima.shift_kernel[(1,)](
        sums.row_sum,
        sums.column_sum,
        bound,
        shift,
        strip.rows,
        strip.columns,
        strip.log_columns,
        BLOCK=8192,
        num_warps=16,
        **FUSED,
    )
    _launch_maxima(strip, shift, sums, workspace_bytes)
    return *sums, shift, kept


def launch_gradients(
    x: torch.Tensor,
    y: torch.Tensor,
    row_factor: torch.Tensor,
    column_factor: torch.Tensor,
    scale: torch.Tensor,
    bound: torch.Tensor,
    shift: torch.Tensor,
    row_lse: torch.Tensor,
    column_lse: torch.Tensor,
    kept: torch.Tensor,
    first_column: int,
    want_rows: bool,
    want_columns: bool,
    workspace_bytes: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Launches Q = (exp(S - row_lse) + exp(S - column_lse)) f g, then Q y and Q^T x, by waves.

    Args:
        x, y, row_factor, column_factor, scale, bound, first_column: as for the statistics.
        shift, kept: as the statistics returned them.
        row_lse: [B] fp32, the logarithm of each row's whole sum.
        column_lse: [G] fp32.
        want_rows, want_columns: which of the two products to run.
        workspace_bytes: limit of Q's memory (at least min(B, 1024) rows are taken).

    Returns:
        row_grad [B, D] = Q y and column_grad [G, D] = Q^T x in fp32 (shape [0] where not wanted).
    """
    factors = (row_factor, column_factor, scale, bound)
    strip = Strip(x.contiguous(), y.contiguous(), *factors, first_column)
    values = (shift, row_lse, column_lse, kept)
    return walk.weighted_products(strip, SOFTMAX, *values, want_rows, want_columns, workspace_bytes)


def _launch_maxima(strip: Strip, shift: torch.Tensor, sums: Sums, workspace_bytes: int) -> None:
    """Overwrites the sums and their bases where shift is NaN."""
    config = strip.config("maxima")
    for begin, end in partial_waves(strip.rows, strip.columns, config, 2, workspace_bytes):
        wave = strip.wave(begin, end)
        along_rows, along_columns = partials(strip.x, wave.rows, strip.columns, config, 2)
        programs = min(processors(strip.x.device, interpreted=2), wave.tiles(config))
        maxima.maxima_kernel[(programs,)](
            *wave[:5],
            shift,
            along_rows,
            along_columns,
            wave.rows,
            wave.columns,
            wave.first_column,
            programs,
            **strip.options(config),
        )
        for partial, base, total, accumulate in (
            (along_rows, sums.row_base[begin:end], sums.row_sum[begin:end], False),
            (along_columns, sums.column_base, sums.column_sum, begin > 0),
        ):
            walk.combine(maxima.combine_maxima_kernel, partial, total, base, shift, accumulate)


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
    x = with_adjacent_elements(x)
    rows, dim = x.shape
    acc = sum_dtype(x.dtype)
    work = x.new_empty(0) if work_dtype is None else x.new_empty((rows, dim), dtype=work_dtype)
    inverse_norm, factor, norm = (x.new_empty(rows, dtype=acc) for _ in range(3))
    tile = tile_shape(dim)
    if rows > 0:
        prepare_kernel[tile.grid(rows)](
            x,
            None if work_dtype is None else work,
            inverse_norm,
            factor,
            norm,
            rows,
            x.stride(0),
            torch.finfo(acc).tiny,
            dim,
            NORMALIZE=normalize,
            **tile.options(),
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
    x, y = with_adjacent_elements(x), with_adjacent_elements(y)
    rows, dim = x.shape
    cosine = torch.empty_like(x_inverse_norm, memory_format=torch.contiguous_format)
    tile = tile_shape(dim)
    if rows > 0:
        diagonal_kernel[tile.grid(rows)](
            x,
            y,
            x_inverse_norm.contiguous(),
            y_inverse_norm.contiguous(),
            cosine,
            rows,
            x.stride(0),
            y.stride(0),
            dim,
            **tile.options(),
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
    grad, x, other = grad.contiguous(), with_adjacent_elements(x), with_adjacent_elements(other)
    rows, dim = x.shape
    grad_x = torch.empty((rows, dim), dtype=x.dtype, device=x.device)
    dot = torch.empty(rows, dtype=grad.dtype, device=x.device)
    tile = finish_tile(dim)
    if rows > 0:
        vectors = (inverse_norm, other_inverse_norm, factor, diagonal)
        finish_kernel[tile.grid(rows)](
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
            **tile.options(),
        )
    return grad_x, dot
