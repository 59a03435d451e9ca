"""Fused L2 normalisation of rows in plain torch: serves where no kernel does."""

from __future__ import annotations

import torch
from torch import Tensor

from clipfast.ops.dtypes import accumulate_dtype


def row_norms(wide: Tensor) -> Tensor:
    """Lengths [B] of the rows of [B, D], scaled by the largest entry before they are squared, so
    that squares of 1e30 or 1e-30 stay in range."""
    largest = torch.linalg.vector_norm(wide, float("inf"), dim=1) if wide.shape[1] else wide.sum(1)
    scale = torch.where((largest > 0) & largest.isfinite(), largest, 1.0)
    return scale * torch.linalg.vector_norm(wide / scale[:, None], dim=1)


def forward(x: Tensor, eps: float, out_dtype: torch.dtype | None = None) -> tuple[Tensor, Tensor]:
    """(y, inv_norm) in plain torch."""
    wide = x.to(accumulate_dtype(x.dtype))
    norm = row_norms(wide)
    is_zero = norm <= max(eps, torch.finfo(wide.dtype).tiny)
    inv_norm = torch.where(is_zero, 0.0, 1.0 / norm)
    return (wide * inv_norm[:, None]).to(out_dtype or x.dtype), inv_norm


def backward(grad_y: Tensor, x: Tensor, inv_norm: Tensor) -> Tensor:
    """grad_x in plain torch."""
    u = x.to(inv_norm.dtype) * inv_norm[:, None]
    grad = grad_y.to(inv_norm.dtype)
    dot = (u * grad).sum(dim=1, keepdim=True)
    return ((grad - u * dot) * inv_norm[:, None]).to(x.dtype)
