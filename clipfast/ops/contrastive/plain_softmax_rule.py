"""What the softmax loss does with a logit, for the walk in plain torch (plain_walk.py)."""

from __future__ import annotations

import torch
from torch import Tensor

from clipfast.ops.contrastive.plain_walk import Sums


class SoftmaxRule:
    """Sums of exp(S - m) by each row's and column's own largest logit m, and

    P = exp(S - row_lse) + exp(S - column_lse)."""

    nothing = float("-inf")

    def terms(self, logits: Tensor, columns: Sums) -> tuple[Sums, Sums]:
        """As `plain_walk.Rule.terms`: (m, sum exp(S - m)); m is -inf over nothing."""
        row_max = logits.amax(dim=1)
        row_sum = (logits - finite(row_max)[:, None]).exp().sum(dim=1)
        column_max = torch.maximum(columns.base, logits.amax(dim=0))
        column_sum = columns.total
        column_sum *= (columns.base - finite(column_max)).exp()
        column_sum += (logits - finite(column_max)).exp().sum(dim=0)
        return Sums(row_max, row_sum), Sums(column_max, column_sum)

    def weights(self, logits: Tensor, row_lse: Tensor, column_lse: Tensor) -> Tensor:
        """As `plain_walk.Rule.weights`: P."""
        return (logits - row_lse[:, None]).exp() + (logits - column_lse).exp()


def finite(largest: Tensor) -> Tensor:
    """Maxima over nothing are -inf; zero in their place keeps differences defined."""
    return torch.where(largest == float("-inf"), 0.0, largest)
