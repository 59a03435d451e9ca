"""What a linear classifier minimises, for several strengths of regularization in one pass.

Shapes: N rows, D features, L problems that differ in lambda, C classes. A problem's parameters are
``[C, D + 1]``, the bias last. Rows are read once for all problems: ``[L C, D] x [D, n]``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from clipfast.eval.probe.rows import Rows


@dataclass(frozen=True, eq=False)
class Evaluated:
    """An objective at one point per problem.

    Attributes:
        value: ``[L]`` float64.
        gradient: ``[L, C, D + 1]`` float64.
        curvature: ``[L, C]`` float64, the mean of p (1 - p) over the rows.
    """

    value: Tensor
    gradient: Tensor
    curvature: Tensor

    def take(self, problems: Tensor) -> Evaluated:
        """Some of the problems."""
        return Evaluated(*(part[problems] for part in vars(self).values()))

    def replaced(self, mask: Tensor, other: Evaluated) -> Evaluated:
        """``other`` where ``mask [L]`` holds."""
        pairs = zip(vars(self).values(), vars(other).values(), strict=True)
        return Evaluated(
            *(torch.where(mask.view(-1, *[1] * (a.dim() - 1)), b, a) for a, b in pairs)
        )


class Objective:
    """Mean loss and L2 penalty, in scikit-learn's scale.

        softmax: f(W, b) = 1/N sum_i -log softmax(W x_i + b)[y_i] + lambda / (2 N) |W - W0|^2
        sigmoid: f(W, b) = 1/N sum_i sum_c softplus(-+ (W x_i + b)_c) + lambda / (2 N) |W - W0|^2

    The minimum is that of scikit-learn's ``LogisticRegression`` with C = 1 / lambda. Products are
    float32, sums over rows float64. Rows are centred on the way, which moves the bias alone: then
    bias and weights hardly depend on each other.

    Args:
        rows: ``[N, D]``.
        targets: ``[N]`` int64 for softmax; ``[N, C]`` bool for sigmoid, one problem per class.
        classes: C.
        lambdas: L strengths.
        prior: W0 ``[C, D]``; None is zero.
        bias: whether there is one; otherwise b stays zero, and so does its gradient.
    """

    def __init__(
        self,
        rows: Rows,
        targets: Tensor,
        classes: int,
        lambdas: Sequence[float],
        prior: Tensor | None = None,
        bias: bool = True,
    ) -> None:
        self.rows, self.classes, self.bias = rows, classes, bias
        self.is_softmax = targets.dim() == 1
        self.targets = targets if self.is_softmax else targets.T.contiguous()
        self.strength = rows.device_tensor(lambdas) / len(rows)
        self.prior = None if prior is None else prior.to(rows.device, torch.float64)
        rows.moments()
        self.passes = 0

    def evaluate(self, parameters: Tensor, problems: Tensor) -> Evaluated:
        """One pass over the rows.

        Args:
            parameters: ``[A, C, D + 1]`` float64; the bias is that of centred rows.
            problems: ``[A]`` int64, which of the L they belong to.
        """
        self.passes += 1
        count, dim = len(parameters), self.rows.dim
        weights, biases = parameters[..., :dim], parameters[..., dim]
        flat = weights.reshape(-1, dim).float()
        # Without a bias nothing makes up for what centring took off.
        shift = biases if self.bias else self.rows.shift(weights)
        value = torch.zeros(count, dtype=torch.float64, device=flat.device)
        gradient = torch.zeros_like(parameters)
        curvature = torch.zeros_like(biases)
        for first, piece in self.rows.pieces(columns=count * self.classes):
            logits = (flat @ piece.T).view(count, self.classes, -1)
            logits += shift.float()[..., None]
            loss, residual = self._loss(logits, slice(first, first + len(piece)))
            value += loss
            products = residual.view(-1, len(piece)) @ piece
            gradient[..., :dim] += products.view(count, self.classes, dim)
            gradient[..., dim] += residual.sum(2, dtype=torch.float64)
            size = residual.abs_()
            curvature += size.sum(2, dtype=torch.float64) - size.square_().sum(
                2, dtype=torch.float64
            )
        number = len(self.rows)
        gradient /= number
        if not self.bias:
            gradient[..., :dim] += gradient[..., dim:] * self.rows.moments()[0]
            gradient[..., dim] = 0.0
        strength = self.strength[problems]
        offset = weights if self.prior is None else weights - self.prior
        gradient[..., :dim] += strength[:, None, None] * offset
        penalty = strength / 2 * offset.square().sum((1, 2))
        return Evaluated(value / number + penalty, gradient, curvature / number)

    def _loss(self, logits: Tensor, where: slice) -> tuple[Tensor, Tensor]:
        """Summed losses ``[A]`` float64, and dloss/dlogits in the place of ``logits [A, C, n]``."""
        if self.is_softmax:
            return _softmax_loss(logits, self.targets[where])
        return _sigmoid_loss(logits, self.targets[:, where])


def _softmax_loss(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Cross entropy, also where a probability is nearly 1.

    d_j = z_j - z_y, m = max(d), r = sum over j != y of exp(d_j - m):
    loss = m + log1p(r + expm1(-m)), p_y - 1 = -r / (r + exp(-m)). Neither subtracts near equals.
    """
    place = labels.expand(len(logits), 1, -1)
    logits -= logits.gather(1, place)
    top = logits.amax(1, keepdim=True)
    weights = logits.sub_(top).exp_().scatter_(1, place, 0.0)
    rest = weights.sum(1, keepdim=True)
    loss = (top + torch.log1p(rest + torch.expm1(-top))).sum((1, 2), dtype=torch.float64)
    total = rest + torch.exp(-top)
    return loss, weights.div_(total).scatter_(1, place, -rest / total)


def _sigmoid_loss(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    sign = 1.0 - 2.0 * targets.float()
    logits *= sign
    loss = torch.nn.functional.softplus(logits).sum((1, 2), dtype=torch.float64)
    return loss, logits.sigmoid_().mul_(sign)
