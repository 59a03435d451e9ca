"""Batch norm with a batch's own statistics in plain torch: serves where no kernel does."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from clipfast.ops.dtypes import accumulate_dtype

FORMAT = torch.channels_last


def _columns(t: Tensor) -> Tensor:
    return t[:, None, None]


def statistics(x: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """(mean, inv_std, var) in plain torch."""
    var, mean = torch.var_mean(x.to(accumulate_dtype(x.dtype)), (0, 2, 3), correction=0)
    return mean, (var + eps).rsqrt(), var


def apply(
    x: Tensor,
    mean: Tensor,
    inv_std: Tensor,
    weight: Tensor,
    bias: Tensor,
    residual: Tensor | None,
    relu: bool,
    want_y: bool,
    want_pooled: bool,
) -> tuple[Tensor, Tensor]:
    """(y, pooled) in plain torch; an empty tensor stands for what is not wanted."""
    z = (x.to(mean.dtype) - _columns(mean)) * _columns(inv_std * weight) + _columns(bias)
    if residual is not None:
        z = z + residual
    y = (z.relu() if relu else z).contiguous(memory_format=FORMAT)
    pooled = F.avg_pool2d(y, 2) if want_pooled else x.new_empty(0)
    return (y if want_y else x.new_empty(0)).to(x.dtype), pooled.to(x.dtype)


def backward(
    grad: Tensor | None,
    other: Tensor | None,
    x: Tensor,
    y: Tensor | None,
    mean: Tensor,
    inv_std: Tensor,
    weight: Tensor,
    bias: Tensor,
    relu: bool,
    want_residual: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(grad_x, grad_residual, grad_weight, grad_bias) in plain torch."""
    dz, distance = _dz(grad, other, x, y, mean, inv_std, weight, bias, relu)
    grad_weight, grad_bias = _sums(dz, distance, inv_std)
    count = x.numel() // x.shape[1]
    grad_x = _grad_x(dz, distance, inv_std, weight, grad_weight, grad_bias, count)
    grad_x = grad_x.to(x.dtype).contiguous(memory_format=FORMAT)
    grad_residual = dz.to(x.dtype) if want_residual else x.new_empty(0)
    return grad_x, grad_residual, grad_weight, grad_bias


def gradient_sums(
    grad: Tensor | None,
    other: Tensor | None,
    x: Tensor,
    y: Tensor | None,
    mean: Tensor,
    inv_std: Tensor,
    weight: Tensor,
    bias: Tensor,
    relu: bool,
    want_residual: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """(grad_residual, grad_weight, grad_bias) over the rows of x in plain torch."""
    dz, distance = _dz(grad, other, x, y, mean, inv_std, weight, bias, relu)
    return dz.to(x.dtype) if want_residual else x.new_empty(0), *_sums(dz, distance, inv_std)


def gradient_x(
    grad: Tensor | None,
    other: Tensor | None,
    x: Tensor,
    y: Tensor | None,
    mean: Tensor,
    inv_std: Tensor,
    weight: Tensor,
    bias: Tensor,
    relu: bool,
    grad_weight: Tensor,
    grad_bias: Tensor,
    count: int,
) -> Tensor:
    """grad_x in plain torch, from the sums over all `count` rows that share the statistics."""
    dz, distance = _dz(grad, other, x, y, mean, inv_std, weight, bias, relu)
    grad_x = _grad_x(dz, distance, inv_std, weight, grad_weight, grad_bias, count)
    return grad_x.to(x.dtype).contiguous(memory_format=FORMAT)


def _sums(dz: Tensor, distance: Tensor, inv_std: Tensor) -> tuple[Tensor, Tensor]:
    """(grad_weight, grad_bias)"""
    grad_bias = dz.sum((0, 2, 3))
    return (dz * distance).sum((0, 2, 3)) * inv_std, grad_bias


def _grad_x(
    dz: Tensor,
    distance: Tensor,
    inv_std: Tensor,
    weight: Tensor,
    grad_weight: Tensor,
    grad_bias: Tensor,
    count: int,
) -> Tensor:
    centred = dz - _columns(grad_bias) / count - distance * _columns(inv_std * grad_weight) / count
    return centred * _columns(inv_std * weight)


def _dz(
    grad: Tensor | None,
    other: Tensor | None,
    x: Tensor,
    y: Tensor | None,
    mean: Tensor,
    inv_std: Tensor,
    weight: Tensor,
    bias: Tensor,
    relu: bool,
) -> tuple[Tensor, Tensor]:
    """The gradient behind the mask, and x - mean."""
    distance = x.to(mean.dtype) - _columns(mean)
    dz = torch.zeros_like(distance, memory_format=FORMAT)
    for part in (grad, other):
        if part is not None and part.shape == x.shape:
            dz = dz + part
        elif part is not None:
            dz = dz + part.to(dz.dtype).repeat_interleave(2, 2).repeat_interleave(2, 3) / 4
    if relu:
        z = distance * _columns(inv_std * weight) + _columns(bias) if y is None else y
        dz = torch.where(z <= 0, 0.0, dz)
    return dz, distance
