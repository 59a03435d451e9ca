"""Launchers of QuickGELU in Triton: allocation and grids."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

from clipfast.kernels.common.device import FUSED
from clipfast.kernels.quick_gelu.elements import quick_gelu_backward_kernel, quick_gelu_kernel

# 16 half-precision elements per thread: two 16-byte loads of x, and of grad_y.
BLOCK = 2048
NUM_WARPS = 4


def launch_quick_gelu(x: torch.Tensor) -> torch.Tensor:
    """Launches the forward kernel.

    Args:
        x: any shape; fp16, bf16, fp32 or fp64.

    Returns:
        y, shape and dtype of x, contiguous.
    """
    x = x.contiguous()
    y = torch.empty_like(x)
    _launch(quick_gelu_kernel, x, y)
    return y


def launch_quick_gelu_backward(grad_y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Launches the backward kernel.

    Args:
        grad_y: shape and dtype of x.
        x: as given to the forward.

    Returns:
        grad_x, shape and dtype of x, contiguous.
    """
    grad_y, x = grad_y.contiguous(), x.contiguous()
    grad_x = torch.empty_like(x)
    _launch(quick_gelu_backward_kernel, grad_y, x, grad_x)
    return grad_x


def _launch(kernel: Any, *tensors: torch.Tensor) -> None:
    """Runs a kernel over all elements of tensors of one shape."""
    n, dtype = tensors[0].numel(), tensors[0].dtype
    acc = tl.float64 if dtype == torch.float64 else tl.float32
    if n > 0:
        grid = (triton.cdiv(n, BLOCK),)
        kernel[grid](*tensors, n, ACC=acc, BLOCK=BLOCK, num_warps=NUM_WARPS, **FUSED)
