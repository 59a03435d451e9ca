"""What torch must know of quick_gelu. Beside plain torch it has these forms:

cpu      csrc/quick_gelu (vectorised, threaded)
triton   kernels/quick_gelu
"""

from __future__ import annotations

import torch
from torch import Tensor

from clipfast.ops.quick_gelu import plain
from clipfast.ops.registry import (
    Compiled,
    Gradient,
    Operator,
    Triton,
    declare,
    no_second_derivative,
)


def _fake_forward(x: Tensor) -> Tensor:
    return x.new_empty(x.shape)


def _fake_backward(grad_y: Tensor, x: Tensor) -> Tensor:
    return x.new_empty(x.shape)


def _setup_context(ctx, inputs, output) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx, grad_y: Tensor):
    (x,) = ctx.saved_tensors
    return torch.ops.clipfast.quick_gelu_backward(grad_y, x)


forward_operator = declare(
    Operator(
        name="quick_gelu",
        schema="(Tensor x) -> Tensor y",
        plain=plain.forward,
        fake=_fake_forward,
        gradient=Gradient(_backward, _setup_context),
        forms=(Compiled("cpu"), Triton("quick_gelu:launch_quick_gelu")),
    )
)
declare(
    Operator(
        name="quick_gelu_backward",
        schema="(Tensor grad_y, Tensor x) -> Tensor grad_x",
        plain=plain.backward,
        fake=_fake_backward,
        gradient=no_second_derivative("quick_gelu", "quick_gelu.reference"),
        forms=(Compiled("cpu"), Triton("quick_gelu:launch_quick_gelu_backward")),
    )
)
