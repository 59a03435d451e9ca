"""Launchers of the contrastive loss's products in Triton: allocation, waves and grids.

The kernels, and what is fused in them, are in kernels/contrastive/tiles.py; tile shapes in
kernels/contrastive/configs.py. A wave is a strip of rows small enough for the workspace: kernels
see it as a problem of its own, with its rows' slices and its own first column. Legend: B rows, G
columns, D width; the operators as in clipfast/ops/contrastive.py. For sm_80 and newer. Nothing here
waits for the device.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator

import torch
import triton

from clipfast.kernels.contrastive import tiles
from clipfast.kernels.contrastive.configs import Config, architecture, configuration
from clipfast.kernels.contrastive.rows import launch_diagonal, launch_finish, launch_prepare

__all__ = [
    "launch_diagonal",
    "launch_finish",
    "launch_gradients",
    "launch_prepare",
    "launch_statistics",
]

Q_SCALE = 2.0**14  # |Q| <= 2: fp16 holds Q * 2^14, and small entries keep all their bits
LEAST_WAVE_ROWS = 1024  # a small workspace may not ask for fewer: it would starve the GEMMs
ROW_ALIGNMENT = 16  # elements of Q's row stride: Triton and the library then access 16 bytes
BLOCK_T, BLOCK_N = 16, 128  # tile of the kernels that combine partial sums


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
    x, y = x.contiguous(), y.contiguous()
    rows, columns = x.shape[0], y.shape[0]
    row_max, row_sum = (x.new_empty(rows, dtype=torch.float32) for _ in range(2))
    column_max, column_sum = (x.new_empty(columns, dtype=torch.float32) for _ in range(2))
    kept_type = torch.float32 if x.dtype == torch.float32 else torch.int16
    kept = x.new_empty((rows, columns) if keep else (0,), dtype=kept_type)
    log_columns = math.log(columns)
    config = _configuration("statistics", x)
    for begin, end in _partial_waves(rows, columns, config, 1, workspace_bytes):
        partials = _partials(x, end - begin, columns, config, 1)
        grid = (_tile_count(end - begin, columns, config),)
        tiles.statistics_kernel[grid](
            x[begin:end],
            y,
            row_factor[begin:end],
            column_factor,
            scale,
            bound,
            kept[begin:end] if keep else None,
            *partials,
            end - begin,
            columns,
            first_column + begin,
            log_columns,
            D=x.shape[1],
            PRECISION=_precision(x),
            **config.options(),
        )
        add = functools.partial(_add_partials, bound=bound, log_columns=log_columns)
        add(partials[0], row_sum[begin:end], row_max[begin:end], accumulate=False)
        add(partials[1], column_sum, column_max, accumulate=begin > 0)
    shift = x.new_empty(1, dtype=torch.float32)
    tiles.shift_kernel[(1,)](
        row_sum, column_sum, bound, shift, rows, columns, log_columns, BLOCK=8192, num_warps=16
    )
    sums = (row_max, row_sum, column_max, column_sum)
    _launch_maxima(
        x, y, row_factor, column_factor, scale, shift, sums, first_column, workspace_bytes
    )
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
    x, y = x.contiguous(), y.contiguous()
    rows, columns = x.shape[0], y.shape[0]
    row_grad = x.new_empty(x.shape if want_rows else (0,), dtype=torch.float32)
    column_grad = x.new_empty(y.shape if want_columns else (0,), dtype=torch.float32)
    if not (want_rows or want_columns):
        return row_grad, column_grad
    q_scale = Q_SCALE if x.dtype == torch.float16 else 1.0
    q_stride = triton.cdiv(columns, ROW_ALIGNMENT) * ROW_ALIGNMENT
    config = _configuration("kept" if kept.numel() else "gradients", x)
    most = max(LEAST_WAVE_ROWS, workspace_bytes // (q_stride * x.element_size()))
    waves = list(_waves(rows, most, config.block_b))
    buffer = x.new_empty((waves[0][1], q_stride))
    for begin, end in waves:
        q = buffer[: end - begin, :columns]
        grid = (_tile_count(end - begin, columns, config),)
        outputs = (row_lse[begin:end], column_lse, q, end - begin, columns, first_column + begin)
        if kept.numel():
            tiles.kept_weights_kernel[grid](
                kept[begin:end],
                row_factor[begin:end],
                column_factor,
                bound,
                shift,
                *outputs,
                q_stride,
                Q_SCALE=q_scale,
                BLOCK_B=config.block_b,
                BLOCK_G=config.block_g,
                num_warps=config.num_warps,
            )
        else:
            tiles.weights_kernel[grid](
                x[begin:end],
                y,
                row_factor[begin:end],
                column_factor,
                scale,
                shift,
                *outputs,
                q_stride,
                D=x.shape[1],
                Q_SCALE=q_scale,
                PRECISION=_precision(x),
                **config.options(),
            )
        if want_rows:
            _multiply(row_grad[begin:end], q, y, 1.0 / q_scale, accumulate=False)
        if want_columns:
            _multiply(column_grad, q.T, x[begin:end], 1.0 / q_scale, accumulate=begin > 0)
    return row_grad, column_grad


def _launch_maxima(
    x: torch.Tensor,
    y: torch.Tensor,
    row_factor: torch.Tensor,
    column_factor: torch.Tensor,
    scale: torch.Tensor,
    shift: torch.Tensor,
    sums: tuple[torch.Tensor, ...],
    first_column: int,
    workspace_bytes: int,
) -> None:
    """Overwrites row_max, row_sum, column_max and column_sum where shift is NaN."""
    row_max, row_sum, column_max, column_sum = sums
    rows, columns = x.shape[0], y.shape[0]
    config = _configuration("maxima", x)
    for begin, end in _partial_waves(rows, columns, config, 2, workspace_bytes):
        partials = _partials(x, end - begin, columns, config, 2)
        programs = min(_programs(x.device), _tile_count(end - begin, columns, config))
        tiles.maxima_kernel[(programs,)](
            x[begin:end],
            y,
            row_factor[begin:end],
            column_factor,
            scale,
            shift,
            *partials,
            end - begin,
            columns,
            first_column + begin,
            programs,
            D=x.shape[1],
            PRECISION=_precision(x),
            **config.options(),
        )
        _combine_maxima(
            partials[0], row_sum[begin:end], row_max[begin:end], shift, accumulate=False
        )
        _combine_maxima(partials[1], column_sum, column_max, shift, accumulate=begin > 0)


def _add_partials(
    partial: torch.Tensor,
    total: torch.Tensor,
    largest: torch.Tensor,
    accumulate: bool,
    bound: torch.Tensor,
    log_columns: float,
) -> None:
    _, count, length = partial.shape
    tiles.add_partials_kernel[(triton.cdiv(length, BLOCK_N),)](
        partial,
        total,
        largest,
        bound,
        count,
        length,
        log_columns,
        ACCUMULATE=accumulate,
        BLOCK_T=BLOCK_T,
        BLOCK_N=BLOCK_N,
        num_warps=4,
    )


def _combine_maxima(
    partial: torch.Tensor,
    total: torch.Tensor,
    largest: torch.Tensor,
    shift: torch.Tensor,
    accumulate: bool,
) -> None:
    _, count, length = partial.shape
    tiles.combine_maxima_kernel[(triton.cdiv(length, BLOCK_N),)](
        partial,
        total,
        largest,
        shift,
        count,
        length,
        ACCUMULATE=accumulate,
        BLOCK_T=BLOCK_T,
        BLOCK_N=BLOCK_N,
        num_warps=4,
    )


def _multiply(
    out: torch.Tensor, left: torch.Tensor, right: torch.Tensor, alpha: float, accumulate: bool
) -> None:
    """out = alpha left right (+ out), accumulated in fp32; no operand is copied on a GPU."""
    beta = 1.0 if accumulate else 0.0
    if left.dtype == torch.float32 or not left.is_cuda:
        torch.addmm(out, left.float(), right.float(), beta=beta, alpha=alpha, out=out)
    elif _has_wide_addmm():
        options = {"beta": beta, "alpha": alpha, "out_dtype": torch.float32, "out": out}
        torch.addmm(out, left, right, **options)
    elif accumulate:
        out.add_(torch.mm(left, right, out_dtype=torch.float32), alpha=alpha)
    else:
        torch.mm(left, right, out_dtype=torch.float32, out=out)
        out.mul_(alpha)


@functools.cache
def _has_wide_addmm() -> bool:
    """Whether addmm adds half-precision products to an fp32 matrix (pytorch#167931, torch 2.10)."""
    major, minor = torch.__version__.split(".")[:2]
    return (int(major), int(minor)) >= (2, 10)


def _precision(x: torch.Tensor) -> str:
    """How fp32 products are formed; torch's own switch decides, as for the library GEMMs."""
    is_exact = x.dtype != torch.float32 or torch.get_float32_matmul_precision() == "highest"
    return "ieee" if is_exact else "tf32"


def _configuration(kernel: str, x: torch.Tensor) -> Config:
    assert x.dtype in (torch.float16, torch.bfloat16, torch.float32), x.dtype
    return configuration(architecture(x.device), kernel, x.dtype)


def _programs(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).multi_processor_count
    return 2  # interpreted


def _tile_count(rows: int, columns: int, config: Config) -> int:
    return triton.cdiv(rows, config.block_b) * triton.cdiv(columns, config.block_g)


def _partials(
    x: torch.Tensor, rows: int, columns: int, config: Config, planes: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Uninitialised partial results along rows [planes, T, rows] and columns [planes, T, G]."""
    row_tiles, column_tiles = (
        triton.cdiv(rows, config.block_b),
        triton.cdiv(columns, config.block_g),
    )
    return (
        x.new_empty((planes, column_tiles, rows), dtype=torch.float32),
        x.new_empty((planes, row_tiles, columns), dtype=torch.float32),
    )


def _partial_waves(
    rows: int, columns: int, config: Config, planes: int, workspace_bytes: int
) -> Iterator[tuple[int, int]]:
    """Waves whose partial results fit the workspace; one tile of rows at least."""
    tile_bytes = 4 * planes * (triton.cdiv(columns, config.block_g) * config.block_b + columns)
    return _waves(rows, workspace_bytes // tile_bytes * config.block_b, config.block_b)


def _waves(rows: int, most: int, tile: int) -> Iterator[tuple[int, int]]:
    """Row ranges of about equal length, whole tiles, at most `most` rows (one tile at least)."""
    most = max(tile, most // tile * tile)
    step = triton.cdiv(triton.cdiv(rows, triton.cdiv(rows, most)), tile) * tile
    for begin in range(0, rows, step):
        yield begin, min(begin + step, rows)
