"""Linear layers and batched products in plain torch."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """y = x W^T + b."""
    return F.linear(x, weight, bias)


def linear_backward(
    grad: Tensor, x: Tensor | None, weight: Tensor | None, by_columns: bool, want_bias: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """dx = dy W where W is given, dW = dy^T x where x is, db, the sum of dy's rows; else [0].

    Args:
        grad: [.., N], dy.
        x: [.., K], or None.
        weight: [N, K], or None.
        by_columns: whether dW shall lie with its columns contiguous.
        want_bias: whether db is wanted.
    """
    grad_x = grad_weight = grad_bias = grad.new_empty(0)
    rows = _rows(grad)
    if weight is not None:
        grad_x = (rows @ weight).view(*grad.shape[:-1], weight.shape[1])
    if x is not None:
        grad_weight = (_rows(x).mT @ rows).mT if by_columns else rows.mT @ _rows(x)
    if want_bias:
        grad_bias = rows.sum(0)
    return grad_x, grad_weight, grad_bias


def _rows(x: Tensor) -> Tensor:
    return x.reshape(math.prod(x.shape[:-1]), x.shape[-1])


def bmm(a: Tensor, b: Tensor) -> Tensor:
    """a_i b_i for each item of a batch."""
    return torch.bmm(a, b)


def bmm_out(a: Tensor, b: Tensor, out: Tensor) -> None:
    """out_i = a_i b_i."""
    torch.bmm(a, b, out=out)
