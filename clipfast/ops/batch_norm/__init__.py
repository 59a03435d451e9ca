"""Batch norm of a training batch, fused with what follows it in a residual network.

    mean, var     of each channel over batch and positions         inv_std = 1 / sqrt(var + eps)
    y = max(0, (x - mean) * inv_std * weight + bias + residual)    pooled = 2x2 average pool of y

Two operators, so that a block that is computed a second time in the backward pass can keep the
statistics and repeat only the cheap rest:

    torch.ops.clipfast.batch_norm_statistics   x -> mean, inv_std, var
    torch.ops.clipfast.batch_norm_apply        x, mean, inv_std, ... -> y, pooled

Both read channels_last rows on the CPU (csrc/batch_norm counts the passes over memory) and are
plain torch elsewhere, where `fused_here` says no: a GPU's own batch norm and torch.compile serve.
Results are channels_last.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from clipfast.ops.extension import load_extension
from clipfast.ops.normalize import DTYPES, accumulate_dtype
from clipfast.ops.registry import Compiled, Operator, declare

FORMAT = torch.channels_last


class Tail(NamedTuple):
    """What follows a batch norm, and what of it is wanted.

    Attributes:
        relu: y = max(0, y).
        pool: return the 2x2 average pool of y instead of y. Not with a residual.
        shortcut_stride: 0: return y. Otherwise (y, shortcut), for a block that reads y on two
            ways: the shortcut is y again (1), or its 2x2 average pool (2). The gradients of both
            come to the backward pass apart and are added there, in the pass that reads them.
    """

    relu: bool = False
    pool: bool = False
    shortcut_stride: int = 0

    @property
    def pools(self) -> bool:
        """Whether anything is pooled."""
        return self.pool or self.shortcut_stride == 2


def fused_here(x: Tensor) -> bool:
    """Whether the operators are faster than plain torch for x: channels_last on the CPU, with the
    compiled extension, and not under torch.compile, which fuses for itself.

    Args:
        x: [B, C, H, W].

    Returns:
        True where `batch_norm` is to be used.
    """
    return (
        x.device.type == "cpu"
        and x.dtype in DTYPES
        and not torch.compiler.is_compiling()
        and load_extension() is not None
        and x.dim() == 4
        and x.numel() > 0
        and x.is_contiguous(memory_format=FORMAT)
    )


def reference(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    residual: Tensor | None = None,
    tail: Tail = Tail(),  # noqa: B008  (immutable)
) -> Tensor | tuple[Tensor, Tensor]:
    """The operators as the equation reads, through torch's own autograd: the truth in tests.

    Args:
        x: [B, C, H, W].
        weight: [C].
        bias: [C].
        eps: added to the variance.
        residual: [B, C, H, W], added before ReLU; or None.
        tail: what follows.

    Returns:
        y, its pool, or both, as `tail` says.
    """
    wide = x.to(accumulate_dtype(x.dtype))
    var, mean = torch.var_mean(wide, (0, 2, 3), correction=0, keepdim=True)
    z = (wide - mean) * (var + eps).rsqrt() * weight[:, None, None] + bias[:, None, None]
    return plain_tail(z if residual is None else z + residual, tail, x.dtype)


def plain_tail(z: Tensor, tail: Tail, dtype: torch.dtype) -> Tensor | tuple[Tensor, Tensor]:
    """ReLU, pool and shortcut in plain torch.

    Args:
        z: [B, C, H, W], may be written into.
        tail: what follows it.
        dtype: type of the result.

    Returns:
        y, its pool, or both, as `tail` says.
    """
    y = (F.relu(z, inplace=True) if tail.relu else z).to(dtype)
    if tail.pool:
        y = F.avg_pool2d(y, 2)
    if tail.shortcut_stride == 0:
        return y
    return y, F.avg_pool2d(y, 2) if tail.shortcut_stride == 2 else y


def batch_norm(
    x: Tensor,
    mean: Tensor,
    inv_std: Tensor,
    weight: Tensor,
    bias: Tensor,
    residual: Tensor | None = None,
    tail: Tail = Tail(),  # noqa: B008  (immutable)
) -> Tensor | tuple[Tensor, Tensor]:
    """y = max(0, (x - mean) * inv_std * weight + bias + residual), with the batch's own statistics.

    Equal to

        z = F.batch_norm(x, None, None, weight, bias, training=True) + residual
        y = F.relu(z)
        return y, F.avg_pool2d(y, 2)

    without writing z, the mask, or, where only the pool is wanted, y. Backward is that of the whole
    batch norm: it knows that mean and inv_std come from x, and returns no gradient for them. Values
    are rounded once, to the type of x. Only the first derivative is defined.

    Args:
        x: [B, C, H, W] fp32, bf16, fp16 or fp64; even H and W where something is pooled.
        mean: [C] fp32 (fp64 for fp64), from `torch.ops.clipfast.batch_norm_statistics(x, eps)`.
        inv_std: [C], likewise.
        weight: [C], of the type of mean.
        bias: [C], of the type of mean.
        residual: [B, C, H, W] of the type of x, added before ReLU; or None.
        tail: what follows, and what is returned.

    Returns:
        y, its pool, or both, as `tail` says; channels_last.

    Raises:
        ValueError: a pool with a residual.

    Source: Ioffe and Szegedy 2015, section 3.
    """
    if tail.pool and (residual is not None or tail.shortcut_stride):
        raise ValueError(f"expected a pool without residual and shortcut, got {tail}")
    return _BatchNorm.apply(x, mean, inv_std, weight, bias, residual, tail)


class _BatchNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, mean, inv_std, weight, bias, residual, tail):
        y, pooled = torch.ops.clipfast.batch_norm_apply(
            *(x, mean, inv_std, weight, bias, residual, tail.relu),
            *(not tail.pool, tail.pools),
        )
        ctx.tail, ctx.has_residual = tail, residual is not None
        # Without a residual the sign of y is found again from x.
        masked = y if tail.relu and residual is not None else None
        ctx.save_for_backward(x, mean, inv_std, weight, bias, masked)
        ctx.set_materialize_grads(False)
        if tail.pool:
            return pooled
        if tail.shortcut_stride == 0:
            return y
        # Another tensor on the same memory, so that autograd keeps the two ways apart.
        return y, pooled if tail.shortcut_stride == 2 else y.detach()

    @staticmethod
    @once_differentiable
    def backward(ctx, grad, other=None):
        if grad is None and other is None:
            return (None,) * 7
        x, mean, inv_std, weight, bias, y = ctx.saved_tensors
        want_residual = ctx.has_residual and ctx.needs_input_grad[5]
        grad_x, grad_residual, grad_weight, grad_bias = torch.ops.clipfast.batch_norm_backward(
            *(grad, other, x, y, mean, inv_std, weight, bias, ctx.tail.relu, want_residual)
        )
        return (
            *(grad_x, None, None, grad_weight, grad_bias),
            *(grad_residual if want_residual else None, None),
        )


def _columns(t: Tensor) -> Tensor:
    return t[:, None, None]


def reference_statistics(x: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """(mean, inv_std, var) in plain torch."""
    var, mean = torch.var_mean(x.to(accumulate_dtype(x.dtype)), (0, 2, 3), correction=0)
    return mean, (var + eps).rsqrt(), var


def reference_apply(
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


def reference_backward(
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
    count = x.numel() // x.shape[1]
    grad_bias = dz.sum((0, 2, 3))
    grad_weight = (dz * distance).sum((0, 2, 3)) * inv_std
    centred = dz - _columns(grad_bias) / count - distance * _columns(inv_std * grad_weight) / count
    grad_x = (centred * _columns(inv_std * weight)).to(x.dtype).contiguous(memory_format=FORMAT)
    grad_residual = dz.to(x.dtype) if want_residual else x.new_empty(0)
    return grad_x, grad_residual, grad_weight, grad_bias


def _empty_rows(x: Tensor, stride: int = 1) -> Tensor:
    batch, channels, height, width = x.shape
    return torch.empty(
        (batch, channels, height // stride, width // stride),
        dtype=x.dtype,
        device=x.device,
        memory_format=FORMAT,
    )


def _empty_vector(x: Tensor) -> Tensor:
    return x.new_empty(x.shape[1], dtype=accumulate_dtype(x.dtype))


def _fake_statistics(x: Tensor, eps: float):
    return _empty_vector(x), _empty_vector(x), _empty_vector(x)


def _fake_apply(x, mean, inv_std, weight, bias, residual, relu, want_y, want_pooled):
    nothing = x.new_empty(0)
    return _empty_rows(x) if want_y else nothing, _empty_rows(x, 2) if want_pooled else nothing


def _fake_backward(grad, other, x, y, mean, inv_std, weight, bias, relu, want_residual):
    residual = _empty_rows(x) if want_residual else x.new_empty(0)
    return _empty_rows(x), residual, _empty_vector(x), _empty_vector(x)


declare(
    Operator(
        name="batch_norm_statistics",
        schema="(Tensor x, float eps) -> (Tensor mean, Tensor inv_std, Tensor var)",
        plain=reference_statistics,
        fake=_fake_statistics,
        forms=(Compiled("cpu"),),
    )
)
declare(
    Operator(
        name="batch_norm_apply",
        schema=(
            "(Tensor x, Tensor mean, Tensor inv_std, Tensor weight, Tensor bias, Tensor? residual, "
            "bool relu, bool want_y, bool want_pooled) -> (Tensor y, Tensor pooled)"
        ),
        plain=reference_apply,
        fake=_fake_apply,
        forms=(Compiled("cpu"),),
    )
)
declare(
    Operator(
        name="batch_norm_backward",
        schema=(
            "(Tensor? grad, Tensor? other, Tensor x, Tensor? y, Tensor mean, Tensor inv_std, "
            "Tensor weight, Tensor bias, bool relu, bool want_residual) -> (Tensor grad_x, "
            "Tensor grad_residual, Tensor grad_weight, Tensor grad_bias)"
        ),
        plain=reference_backward,
        fake=_fake_backward,
        forms=(Compiled("cpu"),),
    )
)
