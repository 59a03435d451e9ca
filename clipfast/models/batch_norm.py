"""Batch normalisation fused with ReLU and residual, whose running statistics can be held still.

A batch is sometimes run twice: when a checkpointed block is recomputed in the backward pass, and
when the features of a large batch are first computed without a graph. The second run must
normalise exactly as the first one did, and must not count the batch again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from clipfast.ops.batch_norm import (
    Sharing,
    Tail,
    batch_norm,
    fused_here,
    plain_tail,
    shared_batch_norm,
    shared_statistics,
)

# A plain integer, not thread-local state: autograd runs recomputation on its own threads while
# the caller waits, and torch.compile can guard on a global.
_frozen_depth = 0


@contextmanager
def frozen_statistics() -> Iterator[None]:
    """Inside, a training-mode `BatchNorm2d` uses the batch's statistics and records nothing.

    Outputs and gradients are those of an ordinary training-mode forward, bit for bit; running
    mean, running variance and `num_batches_tracked` stay as they are. Contexts nest. The state is
    the process's: a forward on another thread is held still too.

    Yields:
        Nothing.
    """
    global _frozen_depth
    _frozen_depth += 1
    try:
        yield
    finally:
        _frozen_depth -= 1


class BatchNorm2d(nn.BatchNorm2d):
    """y = (x - mean) / sqrt(var + eps) * weight + bias, over batch and positions of a channel.

    Equal to `torch.nn.BatchNorm2d`, with the same state dict, and with three differences:
    it obeys `frozen_statistics()`; what follows it (residual, ReLU, average pool) is fused with it
    on the CPU, for channels_last batches in training mode; and its running statistics stay in fp32
    when the module is cast to half precision. A bf16 running mean moves in steps of 0.4 %, so that
    an update of a tenth of a smaller difference rounds to nothing and the statistics stop short of
    their mark.

    Args:
        num_features: channels C.
        zero_gain: start the weight at 0, so that a residual branch begins as the identity.

    Attributes:
        sharing: whose rows are normalised together in training; None: those of the batch that
            comes. `share_statistics` sets it.
        once_a_step: running statistics wait in `met` until `settle_statistics` moves them.
        met: sums over the groups that were met since then: of their means, of their unbiased
            variances; and how many they were. Empty where nothing waits.
    """

    def __init__(self, num_features: int, *, zero_gain: bool = False) -> None:
        self.zero_gain = zero_gain  # before super(), which calls reset_parameters
        super().__init__(num_features)
        self.sharing: Sharing | None = None
        self.once_a_step = False
        self.met: tuple[Tensor, Tensor, int] | None = None
        # deepspeed.zero.Init casts every floating-point tensor made inside it to half.
        if self.running_mean.dtype in (torch.float16, torch.bfloat16):
            self.running_mean = self.running_mean.float()
            self.running_var = self.running_var.float()

    def reset_parameters(self) -> None:
        """Mean 0, variance 1, bias 0, gain 1 (or 0 with `zero_gain`)."""
        super().reset_parameters()
        if self.zero_gain:
            nn.init.zeros_(self.weight)

    def forward(
        self,
        x: Tensor,
        residual: Tensor | None = None,
        *,
        relu: bool = False,
        pool: bool = False,
        shortcut_stride: int = 0,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Normalise one batch; add a residual, apply ReLU and pool if asked to, in this order.

        Args:
            x: [B, C, H, W], fp32, bf16 or fp16.
            residual: [B, C, H, W], added to the result before ReLU.
            relu: y = max(0, y).
            pool: return the 2x2 average pool of y instead of y; without residual and shortcut.
            shortcut_stride: for a block that reads y on two ways, 1 returns (y, y) and 2
                (y, its 2x2 average pool), whose gradients are added in this layer's own backward
                pass; 0 returns y.

        Returns:
            [B, C, H, W], dtype and memory format of `x`; its pool; or both.
        """
        self._check_input_dim(x)
        weight, bias = self.weight, self.bias
        if weight.dtype != self.running_mean.dtype:
            # Kernels want gain, bias and statistics in one dtype; cuDNN's fast path wants fp32.
            weight, bias = weight.to(self.running_mean.dtype), bias.to(self.running_mean.dtype)
        tail = Tail(relu, pool, shortcut_stride)
        if self.training and (self.sharing is not None or self.once_a_step):
            return self._shared(x, weight, bias, residual, tail, self.sharing or Sharing())
        if self.training and self._is_fused(x, tail):
            return self._fused(x, weight, bias, residual, tail)
        mean, var = self.running_mean, self.running_var
        if self.training and _frozen_depth:
            # Throw-away statistics rather than none: the operator saves them for its backward, and
            # a checkpointed block must save as many tensors the second time as the first.
            mean, var = torch.empty_like(mean), torch.empty_like(var)
        elif self.training:
            self.num_batches_tracked.add_(1)
        z = F.batch_norm(x, mean, var, weight, bias, self.training, self.momentum, self.eps)
        if residual is not None:
            z += residual
        return plain_tail(z, tail, z.dtype)

    def _is_fused(self, x: Tensor, tail: Tail) -> bool:
        wide = torch.float64 if x.dtype == torch.float64 else torch.float32
        even = x.shape[2] % 2 == 0 and x.shape[3] % 2 == 0
        # A channel of one value has no variance, which torch's own batch norm says.
        several = x.numel() > x.shape[1]
        return (
            self.running_mean.dtype == wide
            and (even or not tail.pools)
            and several
            and fused_here(x)
        )

    def _fused(
        self, x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None, tail: Tail
    ) -> Tensor | tuple[Tensor, Tensor]:
        mean, inv_std, var = torch.ops.clipfast.batch_norm_statistics(x.detach(), self.eps)
        if not _frozen_depth:
            self.num_batches_tracked.add_(1)
            count = x.numel() // x.shape[1]
            self.running_mean.lerp_(mean, self.momentum)
            unbiased = self.momentum * count / (count - 1)
            self.running_var.mul_(1 - self.momentum).add_(var, alpha=unbiased)
        if residual is not None:
            residual = residual.to(x.dtype)
        return batch_norm(x, mean, inv_std, weight, bias, residual, tail)

    def _shared(
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        residual: Tensor | None,
        tail: Tail,
        sharing: Sharing,
    ) -> Tensor | tuple[Tensor, Tensor]:
        if residual is not None:
            residual = residual.to(x.dtype)
        if x.device.type == "cuda" and sharing.ranks == 1:
            return self._in_parts(x, weight, bias, residual, tail, sharing.groups)
        mean, inv_std, var, count = shared_statistics(x.detach(), self.eps, sharing)
        if not _frozen_depth:
            self._record(mean, var * (count / (count - 1)))
        fits = not tail.pools or (x.shape[2] % 2 == 0 and x.shape[3] % 2 == 0)
        fused = tail if fits else Tail()
        y = shared_batch_norm(x, mean, inv_std, weight, bias, residual, fused, sharing)
        return y if fits else plain_tail(y, tail, x.dtype)

    def _in_parts(
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        residual: Tensor | None,
        tail: Tail,
        groups: int,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Each group by the library's own batch norm, which leaves its statistics where a momentum
        of 1 puts them."""
        if x.shape[0] % groups:
            raise ValueError(f"a batch of {x.shape[0]} does not divide into {groups} groups")
        # Zeros: what was there is multiplied by 0, which a NaN survives.
        means = self.running_mean.new_zeros(groups, self.num_features)
        variances = torch.zeros_like(means)
        parts = [
            F.batch_norm(part, means[k], variances[k], weight, bias, True, 1.0, self.eps)
            for k, part in enumerate(x.chunk(groups))
        ]
        if not _frozen_depth:
            self._record(means, variances)
        z = torch.cat(parts)
        if residual is not None:
            z += residual
        return plain_tail(z, tail, z.dtype)

    def _record(self, means: Tensor, variances: Tensor) -> None:
        """Count some groups.

        Args:
            means: [K, C].
            variances: [K, C], unbiased.
        """
        if not self.once_a_step:
            for k in range(len(means)):
                self.move_running(means[k], variances[k])
            return
        mean, variance, groups = self.met or (0.0, 0.0, 0)
        self.met = mean + means.sum(0), variance + variances.sum(0), groups + len(means)

    def take_met(self) -> tuple[Tensor, Tensor]:
        """The means over the groups that were met, which are forgotten."""
        assert self.met is not None
        mean, variance, groups = self.met
        self.met = None
        return mean / groups, variance / groups

    def move_running(self, mean: Tensor, variance: Tensor) -> None:
        """Move the running statistics by the momentum.

        Args:
            mean: [C].
            variance: [C], unbiased.
        """
        self.num_batches_tracked.add_(1)
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), self.momentum)
        self.running_var.lerp_(variance.to(self.running_var.dtype), self.momentum)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> BatchNorm2d:
        before = {"running_mean": self.running_mean, "running_var": self.running_var}
        super()._apply(fn, recurse)
        for name, statistic in before.items():
            after = self._buffers[name]
            if after.dtype in (torch.float16, torch.bfloat16):
                self._buffers[name] = statistic.to(after.device, torch.float32)
        return self
