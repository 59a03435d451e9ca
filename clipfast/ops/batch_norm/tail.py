"""What follows a batch norm in a residual network: ReLU, an average pool, a shortcut."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from clipfast.ops.average_pool import average_pool


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
        y = average_pool(y, 2)
    if tail.shortcut_stride == 0:
        return y
    return y, average_pool(y, 2) if tail.shortcut_stride == 2 else y
