"""Launchers of L2 normalisation in Triton: allocation and grids."""

from __future__ import annotations

import torch

from clipfast.kernels.common.rows import sum_dtype, tile_shape, with_adjacent_elements
from clipfast.kernels.normalize.rows import l2_normalize_backward_kernel, l2_normalize_kernel


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
        ValueError: rows longer than 65,536.
    """
    x = with_adjacent_elements(x)
    rows, dim = x.shape
    acc = sum_dtype(x.dtype)
    y = torch.empty((rows, dim), dtype=out_dtype or x.dtype, device=x.device)
    inv_norm = torch.empty(rows, dtype=acc, device=x.device)
    tile = tile_shape(dim)
    if rows > 0:
        threshold = max(eps, torch.finfo(acc).tiny)
        l2_normalize_kernel[tile.grid(rows)](
            x, y, inv_norm, rows, x.stride(0), threshold, dim, **tile.options()
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
        ValueError: rows longer than 65,536.
    """
    grad_y, x = with_adjacent_elements(grad_y), with_adjacent_elements(x)
    rows, dim = x.shape
    grad_x = torch.empty((rows, dim), dtype=x.dtype, device=x.device)
    tile = tile_shape(dim)
    if rows > 0:
        strides = (grad_y.stride(0), x.stride(0))
        l2_normalize_backward_kernel[tile.grid(rows)](
            grad_y, x, inv_norm, grad_x, rows, *strides, dim, **tile.options()
        )
    return grad_x
