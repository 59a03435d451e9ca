"""QuickGELU in plain torch: serves where no kernel does, and in what torch.compile fuses."""

from __future__ import annotations

import torch
from torch import Tensor

from clipfast.ops.dtypes import accumulate_dtype

SLOPE = 1.702


def formula(x: Tensor) -> Tensor:
    """y, every operation rounded to the type of x; torch differentiates it.

    Args:
        x: any shape and floating-point dtype.

    Returns:
        y, shape and dtype of x.
    """
    return x * torch.sigmoid(SLOPE * x)


def forward(x: Tensor) -> Tensor:
    """y in plain torch, rounded once."""
    wide = x.to(accumulate_dtype(x.dtype))
    return formula(wide).to(x.dtype).contiguous()


def backward(grad_y: Tensor, x: Tensor) -> Tensor:
    """grad_x in plain torch, rounded once."""
    wide = x.to(accumulate_dtype(x.dtype))
    s = torch.sigmoid(SLOPE * wide)
    return (grad_y * s * (1 + SLOPE * wide * (1 - s))).to(x.dtype).contiguous()
