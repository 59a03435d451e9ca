"""Batch norm whose statistics are those of a part of the batch, or of the batches of several ranks.

    group   the rows that are normalised together: n = count of them, over all ranks that share
    mean    = sum x / n              var = sum (x - mean)^2 / n
    grad_x  = inv_std weight (dz - sum dz / n - (x - mean) inv_std^2 sum dz (x - mean) / n)

The sums over the ranks, two per channel forward and two backward, are `Sharing.sum`'s; between them
each rank runs the operators of a batch of its own. K groups of a batch lie one after another.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from clipfast.ops.batch_norm.declaration import (
    apply_operator,
    gradient_sums_operator,
    gradient_x_operator,
)
from clipfast.ops.batch_norm.tail import Tail
from clipfast.ops.derivatives import first_derivative_only


@dataclass(frozen=True)
class Sharing:
    """Whose rows a batch norm takes together.

    Attributes:
        groups: K parts of the batch, each with statistics of its own; K divides B.
        ranks: that share each part's statistics, with as many rows each.
    """

    groups: int = 1
    ranks: int = 1

    def sum(self, values: Tensor) -> Tensor:
        """The sum of a tensor over those ranks."""
        assert self.ranks == 1, "ranks share statistics: a subclass says how"
        return values


def shared_statistics(
    x: Tensor, eps: float, sharing: Sharing
) -> tuple[Tensor, Tensor, Tensor, int]:
    """Statistics of each group.

    Args:
        x: [B, C, H, W].
        eps: added to the variance.
        sharing: whose rows are taken together.

    Returns:
        (mean, inv_std, var, count): [K, C] fp32 (fp64 for fp64) each, and the values per channel
        of a group, over all ranks.

    Raises:
        ValueError: B does not divide by K; or a group has one value per channel.
    """
    if x.shape[0] % sharing.groups:
        raise ValueError(f"a batch of {x.shape[0]} does not divide into {sharing.groups} groups")
    count = x.numel() // x.shape[1] // sharing.groups * sharing.ranks
    if count == 1:
        raise ValueError(
            f"a batch norm needs more than one value per channel to train, got {tuple(x.shape)}"
        )
    found = [
        torch.ops.clipfast.batch_norm_statistics(part, eps) for part in x.chunk(sharing.groups)
    ]
    mean, inv_std, var = (torch.stack(each) for each in zip(*found, strict=True))
    if sharing.ranks == 1:
        return mean, inv_std, var, count
    # In float64, where a square loses nothing beside a variance: one exchange instead of two.
    wide = mean.double()
    moments = sharing.sum(torch.stack([wide, var.double() + wide.square()])) / sharing.ranks
    shared_var = (moments[1] - moments[0].square()).clamp_min(0)
    inv_std = (shared_var + eps).rsqrt()
    return moments[0].to(mean.dtype), inv_std.to(mean.dtype), shared_var.to(mean.dtype), count


def shared_batch_norm(
    x: Tensor,
    mean: Tensor,
    inv_std: Tensor,
    weight: Tensor,
    bias: Tensor,
    residual: Tensor | None,
    tail: Tail,
    sharing: Sharing,
) -> Tensor | tuple[Tensor, Tensor]:
    """`batch_norm` with the statistics of groups. A collective where ranks share, backward too.

    The gradients of weight and bias are those of this rank's rows; the gradient of x is whole.

    Args:
        x: [B, C, H, W], see `batch_norm`, as are the following but for their shapes.
        mean: [K, C] from `shared_statistics`.
        inv_std: [K, C], likewise.
        weight: [C].
        bias: [C].
        residual: [B, C, H, W] or None.
        tail: what follows.
        sharing: that of the statistics.

    Returns:
        y, its pool, or both, as `tail` says; channels_last.
    """
    return _SharedBatchNorm.apply(x, mean, inv_std, weight, bias, residual, tail, sharing)


class _SharedBatchNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Any,
        mean: Any,
        inv_std: Any,
        weight: Any,
        bias: Any,
        residual: Any,
        tail: Tail,
        sharing: Sharing,
    ) -> Any:
        results = [
            apply_operator(
                *(part, mean[k], inv_std[k], weight, bias, rest, tail.relu),
                *(not tail.pool, tail.pools),
            )
            for k, (part, rest) in enumerate(_parts(sharing.groups, x, residual))
        ]
        y, pooled = (_joined(each) for each in zip(*results, strict=True))
        ctx.tail, ctx.sharing, ctx.has_residual = tail, sharing, residual is not None
        masked = y if tail.relu and residual is not None else None
        ctx.save_for_backward(x, mean, inv_std, weight, bias, masked)
        ctx.set_materialize_grads(False)
        if tail.pool:
            return pooled
        if tail.shortcut_stride == 0:
            return y
        return y, pooled if tail.shortcut_stride == 2 else y.detach()

    @staticmethod
    @first_derivative_only("shared_batch_norm", "clipfast.ops.batch_norm.reference")
    def backward(ctx: Any, grad: Any, other: Any = None) -> Any:
        if grad is None and other is None:
            return (None,) * 8
        x, mean, inv_std, weight, bias, y = ctx.saved_tensors
        sharing, relu = ctx.sharing, ctx.tail.relu
        rows = list(_parts(sharing.groups, grad, other, x, y))
        halves = [
            gradient_sums_operator(
                *(*given, mean[k], inv_std[k], weight, bias, relu, ctx.has_residual)
            )
            for k, given in enumerate(rows)
        ]
        residuals = [half[0] for half in halves]
        sums = torch.stack([torch.stack([half[i] for half in halves]) for i in (1, 2)])
        totals = sums if sharing.ranks == 1 else sharing.sum(sums.double()).to(sums.dtype)
        count = x.numel() // x.shape[1] // sharing.groups * sharing.ranks
        grads = []
        for k, given in enumerate(rows):
            # dz is there, masked and summed, where it was wanted.
            mask = relu and not ctx.has_residual
            read = (residuals[k], None, given[2], None) if ctx.has_residual else given
            grads.append(
                gradient_x_operator(
                    *(*read, mean[k], inv_std[k], weight, bias, mask, *totals[:, k], count)
                )
            )
        grad_residual = _joined(residuals) if ctx.has_residual else None
        grad_weight, grad_bias = sums.sum(1)
        return _joined(grads), None, None, grad_weight, grad_bias, grad_residual, None, None


def _parts(groups: int, *tensors: Tensor | None) -> Iterator[tuple[Any, ...]]:
    """Each group's part of some tensors; of None it is None."""
    cut = [[None] * groups if t is None else t.chunk(groups) for t in tensors]
    return zip(*cut, strict=True)


def _joined(parts: Sequence[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))
