"""What torch must know of l2_normalize. Beside plain torch it has these forms, best first:

cpu, cuda   csrc/normalize
triton      kernels/normalize
"""

from __future__ import annotations

import torch
from torch import Tensor

from clipfast.ops.dtypes import accumulate_dtype
from clipfast.ops.normalize import plain
from clipfast.ops.registry import (
    Compiled,
    Gradient,
    Operator,
    Triton,
    declare,
    no_second_derivative,
)


def _fake_forward(x: Tensor, eps: float, out_dtype: torch.dtype | None = None):
    y = x.new_empty(x.shape, dtype=out_dtype or x.dtype)
    return y, x.new_empty(x.shape[:1], dtype=accumulate_dtype(x.dtype))


def _fake_backward(grad_y: Tensor, x: Tensor, inv_norm: Tensor) -> Tensor:
    return x.new_empty(x.shape)


def _setup_context(ctx, inputs, output) -> None:
    x, _, _ = inputs
    _, inv_norm = output
    # x is alive anyway as the tower's output, so saving it costs nothing and y may be dropped.
    ctx.save_for_backward(x, inv_norm)
    ctx.mark_non_differentiable(inv_norm)


def _backward(ctx, grad_y: Tensor, _grad_inv_norm: Tensor | None):
    x, inv_norm = ctx.saved_tensors
    return torch.ops.clipfast.l2_normalize_backward(grad_y, x, inv_norm), None, None


forward_operator = declare(
    Operator(
        name="l2_normalize",
        schema="(Tensor x, float eps, ScalarType? out_dtype=None) -> (Tensor y, Tensor inv_norm)",
        plain=plain.forward,
        fake=_fake_forward,
        gradient=Gradient(_backward, _setup_context),
        forms=(Compiled("cpu"), Compiled("cuda"), Triton("normalize:launch_l2_normalize")),
    )
)
declare(
    Operator(
        name="l2_normalize_backward",
        schema="(Tensor grad_y, Tensor x, Tensor inv_norm) -> Tensor grad_x",
        plain=plain.backward,
        fake=_fake_backward,
        gradient=no_second_derivative("l2_normalize", "normalize.reference"),
        forms=(Compiled("cpu"), Compiled("cuda"), Triton("normalize:launch_l2_normalize_backward")),
    )
)
