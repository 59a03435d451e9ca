"""Tensors that one call of the AdamW operator updates together."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from clipfast.ops.adamw.lists import lists_fit
from clipfast.optim import states
from clipfast.optim.options import bound_in


class Options(tuple[float, ...]):
    """A group's numbers for the operator: lr, beta1, beta2, eps, weight_decay, maximum."""

    def __new__(cls, group: dict[str, Any], dtype: torch.dtype, grid: str) -> Options:
        beta1, beta2 = group["betas"]
        maximum = group.get("maximum")
        numbers = (group["lr"], beta1, beta2, group["eps"], group["weight_decay"])
        bound = math.inf if maximum is None else float(maximum)
        rounded = group["weights_dtype"] if grid else dtype
        if bound < math.inf and rounded is not torch.float32:
            bound = bound_in(bound, rounded, group["weights"] == "stochastic")
        return super().__new__(cls, (*map(float, numbers), bound))


class Pieces(NamedTuple):
    """How the elements of a tensor are numbered among all of the optimizer's.

    Attributes:
        starts: where each piece begins in the tensor, in the order of memory; the first at 0.
        first_elements: the number of each piece's first element.
    """

    starts: tuple[int, ...]
    first_elements: tuple[int, ...]


class TensorList:
    """Tensors that one call of torch.ops.clipfast.adamw_ updates."""

    def __init__(
        self,
        device: torch.device,
        dtype: torch.dtype,
        stats_dtype: torch.dtype,
        kept: torch.dtype | None,
        grid: str,
        options: Options,
    ) -> None:
        self.device, self.dtype, self.stats_dtype, self.kept = device, dtype, stats_dtype, kept
        self.grid, self.options = grid, options
        self.second = "exp_avg_sq" if stats_dtype is torch.float32 else "exp_avg_sqrt"
        self.has_exponents = stats_dtype is torch.float16
        self.master = None if kept is None else states.MASTER_KEYS.get(kept)
        self.params: list[Tensor] = []
        self.grads: list[Tensor] = []
        self.exp_avgs: list[Tensor] = []
        self.exp_avg_sqs: list[Tensor] = []
        self.exponents: list[Tensor] = []
        self.masters: list[Tensor] = []
        self.steps: list[Tensor] = []
        # One of each for a tensor, and more where it is in pieces.
        self.starts: list[int] = []
        self.first_elements: list[int] = []

    def add(self, param: Tensor, grad: Tensor, state: states.State, pieces: Pieces) -> None:
        """One more tensor, whose gradient and state are in its order."""
        self.params.append(param)
        self.grads.append(grad)
        self.exp_avgs.append(state["exp_avg"])
        self.exp_avg_sqs.append(state[self.second])
        if self.has_exponents:
            self.exponents.append(state["exponents"])
        if self.master is not None:
            self.masters.append(state[self.master])
        self.steps.append(state["step"])
        self.starts += pieces.starts
        self.first_elements += pieces.first_elements

    def fits(self) -> bool:
        """Whether the operator can take all of it as it is; no value is looked at."""
        return lists_fit(self._tensors(), self.dtype, self.stats_dtype, self.kept, self.device)

    def _tensors(self) -> tuple[list[Tensor], ...]:
        moments = (self.exp_avgs, self.exp_avg_sqs, self.exponents)
        return (self.params, self.grads, *moments, self.masters, self.steps)

    def launch(self, control: Tensor, seed: int, stochastic: bool) -> None:
        """The update; the step counts are those after it."""
        lr, beta1, beta2, eps, weight_decay, maximum = self.options
        # A graph that saved these weights must not go backward over the new ones.
        torch.autograd.graph.increment_version(self.params)
        torch.ops.clipfast.adamw_(
            *self._tensors(),
            self.first_elements,
            control,
            lr=lr,
            beta1=beta1,
            beta2=beta2,
            eps=eps,
            weight_decay=weight_decay,
            maximum=maximum,
            seed=seed,
            stochastic=stochastic,
            grid=self.grid,
            starts=self.starts if len(self.starts) > len(self.params) else [],
        )


def in_layout(param: Tensor, grad: Tensor) -> Tensor:
    """The gradient with the parameter's strides, copied only where the order differs."""
    if grad.layout is not torch.strided:
        raise TypeError(
            f"FusedAdamW expects dense gradients, got one of layout {grad.layout} for a parameter "
            f"of shape {tuple(param.shape)}; for an embedding, leave out sparse=True"
        )
    if states.same_order(grad, param):
        return grad.as_strided(param.shape, param.stride())
    return states.in_order_of(param, grad)


def moved(value: Tensor, device: torch.device) -> Tensor:
    """On the device. Only copies to the CPU wait: it would read what has not yet arrived."""
    return value.to(device, non_blocking=device.type != "cpu")


def norm_of(by_device: dict[torch.device, list[Tensor]], home: torch.device) -> Tensor:
    """2-norm over the gradients of all devices, fp32 [] on one of them."""
    norms = [torch.ops.clipfast.adamw_grad_norm(grads) for grads in by_device.values()]
    if len(norms) == 1:
        return norms[0]
    return torch.linalg.vector_norm(torch.stack([moved(norm, home) for norm in norms]))
