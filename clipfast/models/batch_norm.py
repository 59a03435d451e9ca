"""Batch normalisation whose running statistics can be held still, and stay in fp32.

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

    Equal to `torch.nn.BatchNorm2d`, with the same state dict, and with two differences:
    it obeys `frozen_statistics()`, and its running statistics stay in fp32 when the module is
    cast to half precision. A bf16 running mean moves in steps of 0.4 %, so that an update of a
    tenth of a smaller difference rounds to nothing and the statistics stop short of their mark.

    Args:
        num_features: channels C.
        zero_gain: start the weight at 0, so that a residual branch begins as the identity.
    """

    def __init__(self, num_features: int, *, zero_gain: bool = False) -> None:
        self.zero_gain = zero_gain  # before super(), which calls reset_parameters
        super().__init__(num_features)
        # deepspeed.zero.Init casts every floating-point tensor made inside it to half.
        if self.running_mean.dtype in (torch.float16, torch.bfloat16):
            self.running_mean = self.running_mean.float()
            self.running_var = self.running_var.float()

    def reset_parameters(self) -> None:
        """Mean 0, variance 1, bias 0, gain 1 (or 0 with `zero_gain`)."""
        super().reset_parameters()
        if self.zero_gain:
            nn.init.zeros_(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise one batch.

        Args:
            x: [B, C, H, W], fp32, bf16 or fp16.

        Returns:
            [B, C, H, W], dtype and memory format of `x`.
        """
        self._check_input_dim(x)
        weight, bias = self.weight, self.bias
        if weight.dtype != self.running_mean.dtype:
            # Kernels want gain, bias and statistics in one dtype; cuDNN's fast path wants fp32.
            weight, bias = weight.to(self.running_mean.dtype), bias.to(self.running_mean.dtype)
        mean, var = self.running_mean, self.running_var
        if self.training and _frozen_depth:
            # Throw-away statistics rather than none: the operator saves them for its backward, and
            # a checkpointed block must save as many tensors the second time as the first.
            mean, var = torch.empty_like(mean), torch.empty_like(var)
        elif self.training:
            self.num_batches_tracked.add_(1)
        return F.batch_norm(x, mean, var, weight, bias, self.training, self.momentum, self.eps)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> BatchNorm2d:
        before = {"running_mean": self.running_mean, "running_var": self.running_var}
        super()._apply(fn, recurse)
        for name, statistic in before.items():
            after = self._buffers[name]
            if after.dtype in (torch.float16, torch.bfloat16):
                self._buffers[name] = statistic.to(after.device, torch.float32)
        return self
