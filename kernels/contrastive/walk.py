"""The walk over the strip, for any rule: waves, allocation and grids.

strip.py holds the kernels and says what is fused in them. configs.py holds tile shapes, and rule.py
says what a rule is. Legend: B rows, G columns, D width. Nothing here waits for the device.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import triton

from clipfast.kernels.common.device import FUSED, dot_precision
from clipfast.kernels.contrastive import strip
from clipfast.kernels.contrastive.configs import Config, architecture, configuration
from clipfast.kernels.contrastive.constants import HALF_WEIGHT_SCALE
from clipfast.kernels.contrastive.products import multiply
from clipfast.kernels.contrastive.rule import Rule
from clipfast.kernels.contrastive.waves import partial_waves, partials, waves

LEAST_WAVE_ROWS = 1024  # a small workspace may not ask for fewer: it would starve the GEMMs
ROW_ALIGNMENT = 16  # elements of Q's row stride: Triton and the library then access 16 bytes
BLOCK_T, BLOCK_N = 16, 128  # tile of the kernels that combine partial sums


class Strip(NamedTuple):
    """What logits are made of: S_ij = s f_i g_j <x_i, y_j>."""

    x: torch.Tensor  # [B, D] fp16, bf16 or fp32, contiguous
    y: torch.Tensor  # [G, D] the type of x, contiguous
    row_factor: torch.Tensor  # [B] fp32, f
    column_factor: torch.Tensor  # [G] fp32, g
    scale: torch.Tensor  # one element fp32, s
    bound: torch.Tensor  # one element fp32, at least every |S_ij|
    first_column: int  # column of the pair of row 0

    @property
    def rows(self) -> int:
        """B."""
        return self.x.shape[0]

    @property
    def columns(self) -> int:
        """G."""
        return self.y.shape[0]

    @property
    def log_columns(self) -> float:
        """ln G."""
        return math.log(self.columns)

    def wave(self, begin: int, end: int) -> Strip:
        """Rows [begin, end) as a strip."""
        return self._replace(
            x=self.x[begin:end],
            row_factor=self.row_factor[begin:end],
            first_column=self.first_column + begin,
        )

    def config(self, kernel: str) -> Config:
        """The tile shape of a kernel."""
        assert self.x.dtype in (torch.float16, torch.bfloat16, torch.float32), self.x.dtype
        return configuration(architecture(self.x.device), kernel, self.x.dtype)

    def tiles(self, config: Config) -> int:
        """How many tiles cover the strip."""
        return triton.cdiv(self.rows, config.block_b) * triton.cdiv(self.columns, config.block_g)

    def options(self, config: Config) -> dict[str, Any]:
        """The keyword arguments of a kernel that forms logits."""
        precision = dot_precision(self.x.dtype)
        return {"D": self.x.shape[1], "PRECISION": precision, **config.options()}


class Sums(NamedTuple):
    """Sums of a rule's terms and what they are relative to, fp32."""

    row_base: torch.Tensor  # [B]
    row_sum: torch.Tensor  # [B]
    column_base: torch.Tensor  # [G]
    column_sum: torch.Tensor  # [G]


def sum_terms(
    of: Strip,
    rule: Rule,
    keep: bool,
    workspace_bytes: int,
    numbers: torch.Tensor | None = None,
) -> tuple[Sums, torch.Tensor]:
    """Sums a rule's terms along rows and along columns, pairs left out.

    Args:
        of: the strip.
        rule: gives the terms and what they are relative to.
        keep: whether logits are stored for gradients.
        workspace_bytes: limit of the partial sums' memory (at least one tile of rows is taken).
        numbers: the rule's own numbers, where it has any.

    Returns:
        The sums, and kept [B, G]: int16 for half x, fp32 for fp32 x (shape [0] without keep).
    """
    x, rows, columns = of.x, of.rows, of.columns
    row_base, row_sum = (x.new_empty(rows, dtype=torch.float32) for _ in range(2))
    column_base, column_sum = (x.new_empty(columns, dtype=torch.float32) for _ in range(2))
    kept_type = torch.float32 if x.dtype == torch.float32 else torch.int16
    kept = x.new_empty((rows, columns) if keep else (0,), dtype=kept_type)
    config = of.config("statistics")
    for begin, end in partial_waves(rows, columns, config, 1, workspace_bytes):
        wave = of.wave(begin, end)
        along_rows, along_columns = partials(x, wave.rows, columns, config, 1)
        strip.statistics_kernel[(wave.tiles(config),)](
            *wave[:6],
            numbers,
            kept[begin:end] if keep else None,
            along_rows,
            along_columns,
            wave.rows,
            columns,
            wave.first_column,
            of.log_columns,
            BASE=rule.base,
            TERMS=rule.terms,
            **of.options(config),
        )
        for partial, base, total, accumulate in (
            (along_rows, row_base[begin:end], row_sum[begin:end], False),
            (along_columns, column_base, column_sum, begin > 0),
        ):
            combine(
                strip.add_partials_kernel,
                partial,
                total,
                base,
                of.bound,
                accumulate,
                log_columns=of.log_columns,
                BASE=rule.base,
            )
    return Sums(row_base, row_sum, column_base, column_sum), kept


def combine(
    kernel: triton.JITFunction,
    partial: torch.Tensor,
    total: torch.Tensor,
    base: torch.Tensor,
    number: torch.Tensor,
    accumulate: bool,
    **options: Any,
) -> None:
    """Launches a kernel that combines a wave's partial sums over tiles.

    Args:
        kernel: add_partials_kernel, or another of its shape.
        partial: [planes, T, N] fp32.
        total: [N] fp32, written.
        base: [N] fp32, written.
        number: one element fp32, read.
        accumulate: whether what total and base hold, of earlier waves, is part of the result.
        **options: further arguments of the kernel.
    """
    _, count, length = partial.shape
    kernel[(triton.cdiv(length, BLOCK_N),)](
        partial,
        total,
        base,
        number,
        count,
        length,
        ACCUMULATE=accumulate,
        BLOCK_T=BLOCK_T,
        BLOCK_N=BLOCK_N,
        num_warps=4,
        **FUSED,
        **options,
    )


def weighted_products(
    of: Strip,
    rule: Rule,
    base: torch.Tensor,
    row_value: torch.Tensor,
    column_value: torch.Tensor,
    kept: torch.Tensor,
    want_rows: bool,
    want_columns: bool,
    workspace_bytes: int,
    numbers: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Q y and Q^T x with Q = P f g, P a rule's weights, pairs left out; by waves.

    Args:
        of: the strip.
        rule: gives the weights.
        base: one element fp32, handed to the rule.
        row_value: [B] fp32, handed to the rule.
        column_value: [G] fp32, handed to the rule.
        kept: logits from `sum_terms`, or empty: they are formed again.
        want_rows, want_columns: which of the two products to run.
        workspace_bytes: limit of Q's memory (at least min(B, 1024) rows are taken).
        numbers: the rule's own numbers, where it has any.

    Returns:
        row_grad [B, D] = Q y and column_grad [G, D] = Q^T x in fp32 (shape [0] where not wanted).
    """
    x, y, rows, columns = of.x, of.y, of.rows, of.columns
    row_grad = x.new_empty(x.shape if want_rows else (0,), dtype=torch.float32)
    column_grad = x.new_empty(y.shape if want_columns else (0,), dtype=torch.float32)
    if not (want_rows or want_columns):
        return row_grad, column_grad
    q_scale = HALF_WEIGHT_SCALE if x.dtype == torch.float16 else 1.0
    q_stride = triton.cdiv(columns, ROW_ALIGNMENT) * ROW_ALIGNMENT
    config = of.config("kept" if kept.numel() else "gradients")
    most = max(LEAST_WAVE_ROWS, workspace_bytes // (q_stride * x.element_size()))
    ranges = list(waves(rows, most, config.block_b))
    buffer = x.new_empty((ranges[0][1], q_stride))
    for begin, end in ranges:
        wave, q = of.wave(begin, end), buffer[: end - begin, :columns]
        grid = (wave.tiles(config),)
        shared = (
            *(base, numbers, row_value[begin:end], column_value, q),
            *(wave.rows, columns, wave.first_column, q_stride),
        )
        if kept.numel():
            strip.kept_weights_kernel[grid](
                kept[begin:end],
                wave.row_factor,
                wave.column_factor,
                wave.bound,
                *shared,
                Q_SCALE=q_scale,
                BLOCK_B=config.block_b,
                BLOCK_G=config.block_g,
                WEIGHTS=rule.weights,
                num_warps=config.num_warps,
                **FUSED,
            )
        else:
            strip.weights_kernel[grid](
                *wave[:5], *shared, Q_SCALE=q_scale, WEIGHTS=rule.weights, **of.options(config)
            )
        if want_rows:
            multiply(row_grad[begin:end], q, y, 1.0 / q_scale, accumulate=False)
        if want_columns:
            multiply(column_grad, q.T, wave.x, 1.0 / q_scale, accumulate=begin > 0)
    return row_grad, column_grad
