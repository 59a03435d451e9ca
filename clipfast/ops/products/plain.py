"""Linear layers and batched products in plain torch."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """y = x W^T + b."""
    return F.linear(x, weight, bias)


def linear_backward(
    grad: Tensor, x: Tensor, weight: Tensor, want_x: bool, want_weight: bool, want_bias: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """dx = dy W, dW = dy^T x and db, the sum of dy's rows; [0] where not wanted."""
    grad_rows, rows = grad.flatten(0, -2), x.flatten(0, -2)
    if grad.dim() == 1:
        grad_rows, rows = grad[None], x[None]
    none = x.new_empty(0)
    return (
        (grad_rows @ weight).view(x.shape) if want_x else none,
        grad_rows.mT @ rows if want_weight else none,
        grad_rows.sum(0) if want_bias else none,
    )


def bmm(a: Tensor, b: Tensor) -> Tensor:
    """a_i b_i for each item of a batch."""
    return torch.bmm(a, b)


def bmm_out(a: Tensor, b: Tensor, out: Tensor) -> None:
    """out_i = a_i b_i."""
    torch.bmm(a, b, out=out)
