"""The five contrastive operators in plain torch: the truth in tests, and the fallback anywhere.

Memory is bounded as in the fused forms: logits exist for a chunk of rows at a time. Sums always go
by the row's and column's own largest logit, so ``shift`` is NaN (see clipfast/ops/contrastive.py
for the operators, their shapes and the legend).
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from clipfast.ops.normalize import accumulate_dtype, row_norms


def prepare(
    x: Tensor, normalize: bool, work_dtype: torch.dtype | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(work, inverse_norm, factor, norm)."""
    wide = x.to(accumulate_dtype(x.dtype))
    norm = row_norms(wide)
    if not normalize:
        ones = torch.ones_like(norm)
        work = x.new_empty(0) if work_dtype is None else x.to(work_dtype)
        return work, ones, ones.clone(), norm
    is_zero = norm <= torch.finfo(wide.dtype).tiny
    inverse_norm = torch.where(is_zero, 0.0, 1.0 / norm)
    if work_dtype is None:
        work, factor = x.new_empty(0), inverse_norm.clone()
    else:
        # 2^-exponent brings the norm into [1, 2) and rounds nothing.
        exponent = torch.where(is_zero | ~norm.isfinite(), 0, torch.frexp(norm).exponent - 1)
        work = torch.ldexp(wide, -exponent[:, None]).to(work_dtype)
        factor = torch.where(is_zero, 0.0, 1.0 / torch.ldexp(norm, -exponent))
    return work, inverse_norm, factor, torch.where(is_zero, 0.0, norm * inverse_norm)


def diagonal(x: Tensor, y: Tensor, x_inverse_norm: Tensor, y_inverse_norm: Tensor) -> Tensor:
    """cos [B]."""
    acc = accumulate_dtype(x.dtype)
    products = (x.to(acc) * x_inverse_norm[:, None]) * (y.to(acc) * y_inverse_norm[:, None])
    return products.sum(dim=1)


def finish(
    grad: Tensor,
    x: Tensor,
    other: Tensor,
    inverse_norm: Tensor,
    other_inverse_norm: Tensor,
    factor: Tensor,
    diagonal: Tensor,
    coefficient: Tensor,
    normalize: bool,
) -> tuple[Tensor, Tensor]:
    """(grad_x, dot)."""
    acc = grad.dtype
    unit = x.to(acc) * inverse_norm[:, None]
    inverse_factor = torch.where(factor == 0, 0.0, 1.0 / factor)
    pair = other.to(acc) * other_inverse_norm[:, None]
    grad_unit = grad * inverse_factor[:, None] + diagonal[:, None] * pair
    dot = (unit * grad_unit).sum(dim=1)
    if normalize:
        grad_unit = (grad_unit - unit * dot[:, None]) * inverse_norm[:, None]
    return (coefficient * grad_unit).to(x.dtype), dot


def statistics(
    x: Tensor,
    y: Tensor,
    row_factor: Tensor,
    column_factor: Tensor,
    scale: Tensor,
    bound: Tensor,
    first_column: int,
    keep: bool,
    workspace_bytes: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(row_max, row_sum, column_max, column_sum, shift, kept)."""
    rows, columns = x.shape[0], y.shape[0]
    acc = row_factor.dtype
    row_max, row_sum = x.new_empty(rows, dtype=acc), x.new_empty(rows, dtype=acc)
    column_max = x.new_full((columns,), float("-inf"), dtype=acc)
    column_sum = x.new_zeros(columns, dtype=acc)
    kept = x.new_empty((rows, columns) if keep else (0,), dtype=acc)
    for begin, end in _chunks(rows, columns, acc, workspace_bytes):
        logits = _logits(x, y, row_factor, column_factor, scale, begin, end)
        if keep:
            kept[begin:end] = logits
        _mask_pairs(logits, begin + first_column, float("-inf"))
        row_max[begin:end] = logits.amax(dim=1)
        row_sum[begin:end] = (logits - _finite(row_max[begin:end])[:, None]).exp().sum(dim=1)
        largest = torch.maximum(column_max, logits.amax(dim=0))
        column_sum *= (column_max - _finite(largest)).exp()
        column_sum += (logits - _finite(largest)).exp().sum(dim=0)
        column_max = largest
    shift = x.new_full((1,), float("nan"), dtype=acc)
    return _finite(row_max), row_sum, _finite(column_max), column_sum, shift, kept


def gradients(
    x: Tensor,
    y: Tensor,
    row_factor: Tensor,
    column_factor: Tensor,
    scale: Tensor,
    bound: Tensor,
    shift: Tensor,
    row_lse: Tensor,
    column_lse: Tensor,
    kept: Tensor,
    first_column: int,
    want_rows: bool,
    want_columns: bool,
    workspace_bytes: int,
) -> tuple[Tensor, Tensor]:
    """(row_grad, column_grad)."""
    rows, columns = x.shape[0], y.shape[0]
    acc = row_factor.dtype
    row_grad = x.new_empty(x.shape if want_rows else (0,), dtype=acc)
    column_grad = x.new_zeros(y.shape if want_columns else (0,), dtype=acc)
    for begin, end in _chunks(rows, columns, acc, workspace_bytes):
        if kept.numel():
            logits = kept[begin:end]
        else:
            logits = _logits(x, y, row_factor, column_factor, scale, begin, end)
        weights = (logits - row_lse[begin:end, None]).exp() + (logits - column_lse).exp()
        weights *= row_factor[begin:end, None] * column_factor
        _mask_pairs(weights, begin + first_column, 0.0)
        if want_rows:
            row_grad[begin:end] = weights @ y.to(acc)
        if want_columns:
            column_grad.addmm_(weights.T, x[begin:end].to(acc))
    return row_grad, column_grad


def _logits(
    x: Tensor,
    y: Tensor,
    row_factor: Tensor,
    column_factor: Tensor,
    scale: Tensor,
    begin: int,
    end: int,
) -> Tensor:
    """Logits of rows [begin, end), in the type of the factors."""
    acc = row_factor.dtype
    cosines = (x[begin:end].to(acc) @ y.to(acc).T) * row_factor[begin:end, None] * column_factor
    return cosines * scale


def _mask_pairs(matrix: Tensor, first_column: int, value: float) -> None:
    """Write `value` where row i meets its pair, column first_column + i."""
    row = torch.arange(matrix.shape[0], device=matrix.device)
    matrix[row, row + first_column] = value


def _finite(largest: Tensor) -> Tensor:
    """Maxima over nothing are -inf; zero in their place keeps differences defined."""
    return torch.where(largest == float("-inf"), 0.0, largest)


def _chunks(
    rows: int, columns: int, dtype: torch.dtype, workspace_bytes: int
) -> Iterator[tuple[int, int]]:
    """Row ranges whose logits, and a few temporaries of their size, fit the workspace."""
    row_bytes = 4 * columns * torch.finfo(dtype).bits // 8
    step = min(rows, max(64, workspace_bytes // row_bytes))
    for begin in range(0, rows, step):
        yield begin, min(begin + step, rows)
