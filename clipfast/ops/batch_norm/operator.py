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

import torch
from torch import Tensor

from clipfast.ops.batch_norm.declaration import apply_operator, backward_operator
from clipfast.ops.batch_norm.plain import FORMAT
from clipfast.ops.batch_norm.tail import Tail, plain_tail
from clipfast.ops.derivatives import first_derivative_only
from clipfast.ops.dtypes import DTYPES, accumulate_dtype
from clipfast.ops.extension import load_extension


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
        y, pooled = apply_operator(
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
    @first_derivative_only("batch_norm", "clipfast.ops.batch_norm.reference")
    def backward(ctx, grad, other=None):
        if grad is None and other is None:
            return (None,) * 7
        x, mean, inv_std, weight, bias, y = ctx.saved_tensors
        want_residual = ctx.has_residual and ctx.needs_input_grad[5]
        grad_x, grad_residual, grad_weight, grad_bias = backward_operator(
            *(grad, other, x, y, mean, inv_std, weight, bias, ctx.tail.relu, want_residual)
        )
        return (
            *(grad_x, None, None, grad_weight, grad_bias),
            *(grad_residual if want_residual else None, None),
        )
