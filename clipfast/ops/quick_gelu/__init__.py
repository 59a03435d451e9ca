"""QuickGELU: public operator, autograd, and the choice of implementation.

    forward:   y = x * s(x), s(x) = 1 / (1 + exp(-1.702 x))
    backward:  grad_x = grad_y * s * (1 + 1.702 x (1 - s))

Only x is saved. The device of x picks the implementation of torch.ops.clipfast.quick_gelu:

    CPU    csrc/quick_gelu (vectorised, threaded); plain torch where clipfast._C is absent
    CUDA   kernels/quick_gelu (Triton) from sm_80; plain torch below it or without Triton
    other  plain torch
"""

from __future__ import annotations

import torch
from torch import Tensor

from clipfast.ops.normalize import DTYPES, accumulate_dtype
from clipfast.ops.registry import (
    Compiled,
    Gradient,
    Operator,
    Triton,
    declare,
    no_second_derivative,
)

SLOPE = 1.702


def reference(x: Tensor) -> Tensor:
    """The operator as the equation reads, through torch's own autograd.

    Args:
        x: any shape and floating-point dtype.

    Returns:
        y, shape and dtype of x.
    """
    return x * torch.sigmoid(SLOPE * x)


def reference_forward(x: Tensor) -> Tensor:
    """y in plain torch, rounded once."""
    wide = x.to(accumulate_dtype(x.dtype))
    return reference(wide).to(x.dtype).contiguous()


def reference_backward(grad_y: Tensor, x: Tensor) -> Tensor:
    """grad_x in plain torch, rounded once."""
    wide = x.to(accumulate_dtype(x.dtype))
    s = torch.sigmoid(SLOPE * wide)
    return (grad_y * s * (1 + SLOPE * wide * (1 - s))).to(x.dtype).contiguous()


def quick_gelu(x: Tensor) -> Tensor:
    """y = x * sigmoid(1.702 x), in one pass forward and one backward.

    Equal to

        y = x * torch.sigmoid(1.702 * x)

    without its two temporaries, and without keeping the sigmoid for the backward pass. Values are
    fp32 inside (fp64 for fp64) and rounded once. Under torch.compile it is plain torch, which the
    compiler fuses with its neighbours. Only the first derivative is defined outside of it.

    Args:
        x: any shape; fp16, bf16, fp32 or fp64.

    Returns:
        y, shape and dtype of x.

    Raises:
        TypeError: x is of another type.

    Source: Radford et al. 2021's released code; Hendrycks and Gimpel 2016, section 2.
    """
    if x.dtype not in DTYPES:
        raise TypeError(f"expected fp32, fp64, fp16 or bf16, got {x.dtype}")
    if torch.compiler.is_compiling():
        return reference(x)
    return torch.ops.clipfast.quick_gelu(x)


def _fake_forward(x: Tensor) -> Tensor:
    return x.new_empty(x.shape)


def _fake_backward(grad_y: Tensor, x: Tensor) -> Tensor:
    return x.new_empty(x.shape)


def _setup_context(ctx, inputs, output) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx, grad_y: Tensor):
    (x,) = ctx.saved_tensors
    return torch.ops.clipfast.quick_gelu_backward(grad_y, x)


declare(
    Operator(
        name="quick_gelu",
        schema="(Tensor x) -> Tensor y",
        plain=reference_forward,
        fake=_fake_forward,
        gradient=Gradient(_backward, _setup_context),
        forms=(Compiled("cpu"), Triton("quick_gelu:launch_quick_gelu")),
    )
)
declare(
    Operator(
        name="quick_gelu_backward",
        schema="(Tensor grad_y, Tensor x) -> Tensor grad_x",
        plain=reference_backward,
        fake=_fake_backward,
        gradient=no_second_derivative("quick_gelu", "quick_gelu.reference"),
        forms=(Compiled("cpu"), Triton("quick_gelu:launch_quick_gelu_backward")),
    )
)
