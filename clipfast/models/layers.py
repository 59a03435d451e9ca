"""Small pieces that both towers share: initialised linear maps, QuickGELU, recomputation."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from clipfast.models.batch_norm import frozen_statistics


class Linear(nn.Linear):
    """y = x W^T + b, with the starting weights that its place in CLIP asks for.

    Each layer initialises itself in its own constructor: `deepspeed.zero.Init` partitions a
    module's parameters as soon as that constructor returns, so a parent comes too late.

    Args:
        in_features: width of x.
        out_features: width of y.
        std: standard deviation of the normal weight; None leaves PyTorch's uniform default.
        zero_bias: start the bias at 0 instead of PyTorch's uniform default.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        std: float | None = None,
        zero_bias: bool = False,
    ) -> None:
        self.std, self.zero_bias = std, zero_bias  # before super(), which calls reset_parameters
        super().__init__(in_features, out_features)

    def reset_parameters(self) -> None:
        """Draw the weight and the bias anew."""
        if self.std is None:
            super().reset_parameters()
        else:
            nn.init.normal_(self.weight, std=self.std)
            bound = self.in_features**-0.5
            nn.init.uniform_(self.bias, -bound, bound)
        if self.zero_bias:
            nn.init.zeros_(self.bias)


class TokenEmbedding(nn.Embedding):
    """x[b, l] = W[tokens[b, l]], with W ~ N(0, 0.02^2)."""

    def reset_parameters(self) -> None:
        """Draw the rows anew."""
        nn.init.normal_(self.weight, std=0.02)


class QuickGELU(nn.Module):
    """y = x * sigmoid(1.702 x), the activation of every transformer block in CLIP."""

    def forward(self, x: Tensor) -> Tensor:
        """Apply the activation.

        Args:
            x: any shape and floating-point dtype.

        Returns:
            Shape and dtype of `x`.
        """
        return x * torch.sigmoid(1.702 * x)


def _recompute_contexts() -> tuple[AbstractContextManager, AbstractContextManager]:
    return nullcontext(), frozen_statistics()


def run_block(block: nn.Module, x: Tensor, recompute: bool, **kwargs: Any) -> Tensor:
    """y = block(x), keeping only x for the backward pass if asked to.

    Args:
        block: a residual block without dropout.
        x: its input.
        recompute: run the block again in the backward pass; without a graph, or in eval mode, it
            makes no difference.
        kwargs: further arguments of the block.

    Returns:
        What the block returns.
    """
    if not (recompute and block.training and torch.is_grad_enabled()):
        return block(x, **kwargs)
    if not torch.compiler.is_compiling():
        # A compiled graph needs none: it updates the statistics once, outside what it recomputes,
        # and Dynamo refuses any context function here.
        kwargs["context_fn"] = _recompute_contexts
    return checkpoint(block, x, use_reentrant=False, preserve_rng_state=False, **kwargs)
