"""The five contrastive operators in plain torch: the fallback on any device, in any type.

Memory is bounded as in the fused forms: logits exist for a chunk of rows at a time (plain_walk.py).
Sums always go by the row's and column's own largest logit, so ``shift`` is NaN
(plain_softmax_rule.py). clipfast/ops/contrastive describes the operators, their shapes and the
legend.
"""

from __future__ import annotations

import torch
from torch import Tensor

from clipfast.ops.contrastive.plain_softmax_rule import SoftmaxRule, finite
from clipfast.ops.contrastive.plain_walk import Strip, sum_terms, weighted_products
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
    strip = Strip(x, y, row_factor, column_factor, scale, first_column)
    of_rows, of_columns, kept = sum_terms(strip, SoftmaxRule(), keep, workspace_bytes)
    shift = x.new_full((1,), float("nan"), dtype=row_factor.dtype)
    row_max, column_max = finite(of_rows.base), finite(of_columns.base)
    return row_max, of_rows.total, column_max, of_columns.total, shift, kept


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
    strip = Strip(x, y, row_factor, column_factor, scale, first_column)
    values = (row_lse, column_lse, kept)
    return weighted_products(
        strip, SoftmaxRule(), *values, want_rows, want_columns, workspace_bytes
    )
