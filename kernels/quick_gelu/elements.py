"""QuickGELU in Triton, forward and backward: one launch and one pass over memory each.

Forward reads x and writes y, where the eager form launches three kernels and writes two
temporaries. Backward reads x and grad_y and writes grad_x, from x alone; the eager form has kept
the sigmoid, and launches five kernels.
"""

from __future__ import annotations

import triton
import triton.language as tl

from clipfast.kernels.quick_gelu.constants import SLOPE


@triton.jit
def _places(n, BLOCK: tl.constexpr):
    """The program's elements, and which of them exist."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    return at, at < n


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
    at, mask = _places(n, BLOCK)
    x = tl.load(x_ptr + at, mask=mask, other=0.0).to(ACC)
    tl.store(y_ptr + at, (x * _sigmoid(x)).to(y_ptr.dtype.element_ty), mask=mask)


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
    at, mask = _places(n, BLOCK)
    x = tl.load(x_ptr + at, mask=mask, other=0.0).to(ACC)
    grad_y = tl.load(grad_y_ptr + at, mask=mask, other=0.0).to(ACC)
    s = _sigmoid(x)
    grad_x = grad_y * s * (1.0 + x * SLOPE * (1.0 - s))
    tl.store(grad_x_ptr + at, grad_x.to(grad_x_ptr.dtype.element_ty), mask=mask)
