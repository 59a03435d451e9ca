"""QuickGELU in Triton, forward and backward: one launch and one pass over memory each.

Forward reads x and writes y, where the eager form launches three kernels and writes two
temporaries. Backward reads x and grad_y and writes grad_x, from x alone; the eager form has kept
the sigmoid, and launches five kernels.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

# 16 half-precision elements a thread: two 16-byte loads of x, and of grad_y.
BLOCK = 2048
NUM_WARPS = 4
SLOPE = tl.constexpr(1.702)  # as in csrc/quick_gelu/constants.h


@triton.jit
def _sigmoid(x):
    """1 / (1 + exp(-1.702 x)), with the exponential of a number that is never positive."""
    e = tl.exp(tl.abs(x) * -SLOPE)
    return tl.where(x >= 0, 1.0, e) / (1.0 + e)


@triton.jit
def quick_gelu_kernel(
    x_ptr,  # [n] any float type
    y_ptr,  # [n] the type of x
    n,
    ACC: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """y = x * sigmoid(1.702 x)."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + at, mask=at < n, other=0.0).to(ACC)
    tl.store(y_ptr + at, (x * _sigmoid(x)).to(y_ptr.dtype.element_ty), mask=at < n)


@triton.jit
def quick_gelu_backward_kernel(
    grad_y_ptr,  # [n] the type of x
    x_ptr,  # [n] any float type
    grad_x_ptr,  # [n] the type of x
    n,
    ACC: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """grad_x = grad_y * s * (1 + 1.702 x (1 - s)), s = sigmoid(1.702 x)."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + at, mask=at < n, other=0.0).to(ACC)
    grad_y = tl.load(grad_y_ptr + at, mask=at < n, other=0.0).to(ACC)
    s = _sigmoid(x)
    grad_x = grad_y * s * (1.0 + x * SLOPE * (1.0 - s))
    tl.store(grad_x_ptr + at, grad_x.to(grad_x_ptr.dtype.element_ty), mask=at < n)


def _accumulate(dtype: torch.dtype) -> tl.dtype:
    return tl.float64 if dtype == torch.float64 else tl.float32


def launch_quick_gelu(x: torch.Tensor) -> torch.Tensor:
    """Launches the forward kernel.

    Args:
        x: any shape; fp16, bf16, fp32 or fp64.

    Returns:
        y, shape and dtype of x, contiguous.
    """
    x = x.contiguous()
    y = torch.empty_like(x)
    n = x.numel()
    if n > 0:
        quick_gelu_kernel[(triton.cdiv(n, BLOCK),)](
            x, y, n, ACC=_accumulate(x.dtype), BLOCK=BLOCK, num_warps=NUM_WARPS
        )
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
    n = x.numel()
    if n > 0:
        quick_gelu_backward_kernel[(triton.cdiv(n, BLOCK),)](
            grad_y, x, grad_x, n, ACC=_accumulate(x.dtype), BLOCK=BLOCK, num_warps=NUM_WARPS
        )
    return grad_x
