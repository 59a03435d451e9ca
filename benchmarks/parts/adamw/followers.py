"""Adam in float64, clipfast's optimizer, and forms that lose precision, on the same gradients.

Each follower keeps statistics of its own and says what its update of a step is, so that
``adamw_proof.py`` can set them beside the truth:

    direction = m_hat / (sqrt(v_hat) + eps)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from clipfast.ops.adamw import decode
from clipfast.optim.fused_adamw import FusedAdamW

BETA1, EPS = 0.9, 1e-8


class Follower(Protocol):
    """Takes gradients step by step."""

    def step(self, grads: Sequence[Tensor]) -> list[Tensor]:
        """Take one step's gradients; return the direction of each tensor's update."""

    def second_moments(self) -> list[Tensor]:
        """v of each tensor as the state holds it after the last step, float64."""


class Adam64:
    """The truth: Adam in float64 throughout."""

    def __init__(self, shapes: Sequence[torch.Size], beta2: float) -> None:
        self.beta2, self.steps = beta2, 0
        self.m = [torch.zeros(shape, dtype=torch.float64) for shape in shapes]
        self.v = [torch.zeros(shape, dtype=torch.float64) for shape in shapes]

    def step(self, grads: Sequence[Tensor]) -> list[Tensor]:
        self.steps += 1
        for m, v, grad in zip(self.m, self.v, grads, strict=True):
            wide = grad.double()
            m.mul_(BETA1).add_(wide, alpha=1 - BETA1)
            v.mul_(self.beta2).addcmul_(wide, wide, value=1 - self.beta2)
        return self.directions()

    def directions(self) -> list[Tensor]:
        """Of the last step."""
        return _directions(self.m, self.v, self.beta2, self.steps)

    def second_moments(self) -> list[Tensor]:
        return self.v


class Ours:
    """``FusedAdamW`` itself: its update is read off weights of zero after a step of rate 1."""

    def __init__(
        self,
        shapes: Sequence[torch.Size],
        beta2: float,
        stats_dtype: torch.dtype,
        rounding: str = "stochastic",
    ) -> None:
        self.weights = [torch.zeros(shape) for shape in shapes]
        self.optimizer = FusedAdamW(
            self.weights,
            lr=1.0,
            betas=(BETA1, beta2),
            eps=EPS,
            weight_decay=0.0,
            stats_dtype=stats_dtype,
            rounding=rounding,
            skip_nonfinite=False,
        )

    def step(self, grads: Sequence[Tensor]) -> list[Tensor]:
        for weight, grad in zip(self.weights, grads, strict=True):
            weight.zero_()
            weight.grad = grad
        self.optimizer.step()
        return [-weight for weight in self.weights]

    def second_moments(self) -> list[Tensor]:
        return [second_moment(self.optimizer.state[weight]) for weight in self.weights]


def second_moment(state: dict[str, Tensor]) -> Tensor:
    """v in float64 from a parameter's state in ``FusedAdamW``, whatever its format."""
    if "exp_avg_sq" in state:
        return state["exp_avg_sq"].double()
    exponents = state.get("exponents")
    root = decode(state["exp_avg_sqrt"], None if exponents is None else exponents[1])
    return root.double().square()


class OneScale:
    """The form of Dhariwal et al. 2020: m and v in float16, each with one scale per tensor.

    The scale is the largest magnitude, at least 1e-8; rounding is to nearest. The update uses the
    moments before they are rounded.
    """

    def __init__(self, shapes: Sequence[torch.Size], beta2: float) -> None:
        self.beta2, self.steps = beta2, 0
        self.m = [_scaled_half(torch.zeros(shape)) for shape in shapes]
        self.v = [_scaled_half(torch.zeros(shape)) for shape in shapes]

    def step(self, grads: Sequence[Tensor]) -> list[Tensor]:
        self.steps += 1
        ms, vs = [], []
        for i, grad in enumerate(grads):
            ms.append(_unscaled(self.m[i]).lerp_(grad, 1 - BETA1))
            vs.append(
                _unscaled(self.v[i]).mul_(self.beta2).addcmul_(grad, grad, value=1 - self.beta2)
            )
            self.m[i], self.v[i] = _scaled_half(ms[-1]), _scaled_half(vs[-1])
        return _directions(ms, vs, self.beta2, self.steps)

    def second_moments(self) -> list[Tensor]:
        return [_unscaled(v).double() for v in self.v]


class HalfVariance:
    """m in float32, v in bfloat16 rounded to nearest, as optimizers "of any precision" keep it."""

    def __init__(self, shapes: Sequence[torch.Size], beta2: float) -> None:
        self.beta2, self.steps = beta2, 0
        self.m = [torch.zeros(shape) for shape in shapes]
        self.v = [torch.zeros(shape, dtype=torch.bfloat16) for shape in shapes]

    def step(self, grads: Sequence[Tensor]) -> list[Tensor]:
        self.steps += 1
        vs = []
        for m, v, grad in zip(self.m, self.v, grads, strict=True):
            m.lerp_(grad, 1 - BETA1)
            vs.append(v.float().mul_(self.beta2).addcmul_(grad, grad, value=1 - self.beta2))
            v.copy_(vs[-1])
        return _directions(self.m, vs, self.beta2, self.steps)

    def second_moments(self) -> list[Tensor]:
        return [v.double() for v in self.v]


def _directions(
    ms: Sequence[Tensor], vs: Sequence[Tensor], beta2: float, steps: int
) -> list[Tensor]:
    correction1, correction2 = 1 - BETA1**steps, 1 - beta2**steps
    return [
        (m / correction1).div_((v / correction2).sqrt_().add_(EPS))
        for m, v in zip(ms, vs, strict=True)
    ]


def _scaled_half(x: Tensor) -> tuple[Tensor, float]:
    scale = max(float(x.abs().max()) if x.numel() else 0.0, 1e-8)
    return (x / scale).half(), scale


def _unscaled(kept: tuple[Tensor, float]) -> Tensor:
    return kept[0].float() * kept[1]


@dataclass(frozen=True)
class Limits:
    """What a follower's error may be.

    Attributes:
        update: Relative L2 error of the update.
        bias: Relative bias of v.
    """

    update: float
    bias: float


# What is claimed of float16 statistics, and what every control is held to.
CLAIM = Limits(update=1e-2, bias=2e-3)


@dataclass(frozen=True)
class Contender:
    """A follower to be judged.

    Attributes:
        name: As in the tables.
        build: From shapes and beta2.
        limits: What it is held to.
        is_control: Whether it must pass everywhere (False) or fail somewhere (True).
    """

    name: str
    build: Callable[[Sequence[torch.Size], float], Follower]
    limits: Limits
    is_control: bool = False


CONTENDERS = (
    Contender("fp16 m, sqrt(v)", lambda s, b: Ours(s, b, torch.float16), CLAIM),
    # Eight times fp16's spacing: eight times the error, which is beyond the claim, and 64 times
    # the bias, which is the variance of a rounded root.
    Contender("bf16 m, sqrt(v)", lambda s, b: Ours(s, b, torch.bfloat16), Limits(8e-2, 64 * 2e-4)),
    Contender("fp32 m, v", lambda s, b: Ours(s, b, torch.float32), Limits(1e-4, 1e-4)),
    Contender("fp16, to nearest", lambda s, b: Ours(s, b, torch.float16, "nearest"), CLAIM, True),
    Contender("fp16, one scale a tensor", OneScale, CLAIM, True),
    Contender("bf16 v, to nearest", HalfVariance, CLAIM, True),
)
