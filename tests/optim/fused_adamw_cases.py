"""Parameters, gradients and runs that the tests of FusedAdamW share."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn import Parameter

from clipfast import FusedAdamW

STATS = (torch.float16, torch.bfloat16, torch.float32)
# weights, the parameter's type, the grid of an fp32 parameter
WEIGHTS = (
    ("fp32", torch.float32, None),
    ("fp32", torch.bfloat16, None),
    ("fp32", torch.float16, None),
    ("remainder", torch.bfloat16, None),
    ("stochastic", torch.bfloat16, None),
    ("stochastic", torch.float16, None),
    ("stochastic", torch.float32, torch.bfloat16),
)
# One block, blocks with a rest, no dimension, fewer than a vector.
SHAPES = ((256,), (37, 23), (), (5,))


def parameters(dtype: torch.dtype = torch.float32, shapes=SHAPES) -> list[Parameter]:
    """The same values on every call; a bf16 parameter's are those of the fp32 one, rounded."""
    generator = torch.Generator().manual_seed(1)
    return [Parameter(torch.randn(shape, generator=generator).to(dtype)) for shape in shapes]


def set_gradients(params: Iterable[Tensor], step: int, scale: float = 1.0) -> None:
    """Gradients of five decades that bf16 holds, the same for a step on every call."""
    generator = torch.Generator().manual_seed(1000 + step)
    for param in params:
        value = torch.randn(param.shape, generator=generator)
        decade = 10.0 ** (torch.rand(param.shape, generator=generator) * 5 - 4)
        param.grad = (value * decade * scale).bfloat16().to(param.dtype)


def train(optimizer: torch.optim.Optimizer, steps: Iterable[int]) -> None:
    """Updates with the gradients of the given steps."""
    for step in steps:
        params = [param for group in optimizer.param_groups for param in group["params"]]
        set_gradients(params, step)
        optimizer.step()


def trained(steps: int, dtype: torch.dtype = torch.float32, **options) -> FusedAdamW:
    """An optimizer after some steps from the start."""
    optimizer = FusedAdamW(parameters(dtype), lr=0.01, **options)
    train(optimizer, range(steps))
    return optimizer


def contents(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """Every parameter and every tensor of its state, in a fixed order."""
    tensors = []
    for group in optimizer.param_groups:
        for param in group["params"]:
            tensors.append(param.detach())
            state = optimizer.state.get(param, {})
            tensors += [state[key] for key in sorted(state)]
    return tensors


def assert_same_bits(left: Iterable[Tensor], right: Iterable[Tensor]) -> None:
    """Types and values equal, without tolerance."""
    left, right = list(left), list(right)
    assert [a.dtype for a in left] == [b.dtype for b in right]
    for a, b in zip(left, right, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)
