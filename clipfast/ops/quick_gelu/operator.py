"""QuickGELU: the public operator, and what it must equal.

    forward:   y = x * s(x), s(x) = 1 / (1 + exp(-1.702 x))
    backward:  grad_x = grad_y * s * (1 + 1.702 x (1 - s))

Only x is saved.
"""

from __future__ import annotations

import torch
from torch import Tensor

from clipfast.ops.dtypes import DTYPES
from clipfast.ops.quick_gelu import plain
from clipfast.ops.quick_gelu.declaration import forward_operator


def reference(x: Tensor) -> Tensor:
    """The operator as the equation reads, through torch's own autograd: the truth in
    tests.

    Args:
        x: any shape and floating-point dtype.

    Returns:
        y, shape and dtype of x.
    """
    return x * torch.sigmoid(1.702 * x)


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
        return plain.formula(x)
    return forward_operator(x)
