"""The norm of a step's gradient, whole and of each tower, at every ZeRO stage and in every type.

DeepSpeed 0.19 knows the whole norm, but for ZeRO 0 in float32, and in fp16 at stage 0 multiplied by
the loss scale. How it divides among the towers is read where the optimizer meets the gradient: each
rank then holds its part of each parameter group, unscaled and perhaps clipped. One factor has done
both to all of it, so that the towers' shares are still those of the gradient itself:

    norm of a tower = whole norm * sqrt(tower's sum of squares / all squares)
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer

from clipfast.engine.deepspeed.half_stage0 import keeps_scale_in_norm
from clipfast.optim.groups import TOWERS, tower_of_parameter

_PREFIX = "grad_norm"


def towers_of(model: nn.Module, optimizer: Optimizer) -> list[str] | None:
    """The tower of each parameter group, in their order, before DeepSpeed replaces the parameters.

    Args:
        model: whose parameters have names.
        optimizer: of its parameters.

    Returns:
        One of ``TOWERS`` per group; None where a group is not of one tower.
    """
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found: list[str] = []
    for group in optimizer.param_groups:
        given = [names.get(id(one)) for one in group["params"]]
        towers = {None if name is None else tower_of_parameter(name) for name in given}
        tower = towers.pop() if len(towers) == 1 else None
        if tower is None:
            return None
        found.append(tower)
    return found


def keep_clipped_norm(engine: Any) -> None:
    """Have DeepSpeed keep the norm that it clips to at ZeRO 0 in float32, which it forgets.

    Args:
        engine: the DeepSpeed engine.
    """
    from deepspeed.runtime.utils import clip_grad_norm_

    def clip() -> None:
        engine._global_grad_norm = clip_grad_norm_(
            parameters=engine.module.parameters(),
            max_norm=engine.gradient_clipping(),
            mpu=engine.mpu,
        )

    engine.clip_fp32_gradients = clip


class GradientNorms:
    """Gradient norms of the steps that are observed; the others cost nothing.

    Args:
        engine: a DeepSpeed engine.
        towers: of its optimizer's groups, as ``towers_of`` gave them.
        stage: of ZeRO.
    """

    def __init__(self, engine: Any, towers: Sequence[str] | None, stage: int) -> None:
        self._engine = engine
        self._towers = towers
        self._is_shared = stage > 0 and dist.is_initialized() and dist.get_world_size() > 1
        self._tower_of: dict[int, str] = {}
        self._squares: dict[str, Tensor] = {}
        self._scale = 1.0

    @contextmanager
    def observed(self) -> Iterator[None]:
        """Look at the gradients that the optimizer meets inside. Nothing waits for the device."""
        self._squares = {}
        optimizer = getattr(self._engine.optimizer, "optimizer", self._engine.optimizer)
        self._scale = _loss_scale(self._engine)
        if not isinstance(optimizer, Optimizer) or self._towers is None:
            yield
            return
        groups = zip(optimizer.param_groups, self._towers, strict=True)
        self._tower_of = {id(group): tower for group, tower in groups}
        handle = optimizer.register_step_pre_hook(self._add)
        try:
            yield
        finally:
            handle.remove()

    def figures(self) -> dict[str, float]:
        """Norms of the last observed step, as ``grad_norm`` and ``grad_norm/TOWER``. Waits for the
        device; a collective. A step that was skipped has no towers' norms."""
        whole = self._whole()
        # A step is skipped on all ranks or on none, and each holds a part of some group.
        if not self._squares:
            return {} if whole is None else {_PREFIX: whole}
        squares = self._summed()
        total = sum(squares.values())
        whole = total**0.5 if whole is None else whole
        shares = {name: square / total if total else 0.0 for name, square in squares.items()}
        towers = {f"{_PREFIX}/{name}": whole * share**0.5 for name, share in shares.items()}
        return {_PREFIX: whole, **towers}

    def _add(self, optimizer: Optimizer, *_: Any) -> None:
        # DeepSpeed steps one group at a time, and puts it alone into the optimizer meanwhile.
        for group in optimizer.param_groups:
            tower = self._tower_of.get(id(group))
            gradients = [p.grad for p in group["params"] if p.grad is not None]
            if tower is not None and gradients:
                before = self._squares.get(tower)
                square = _square(gradients)
                self._squares[tower] = square if before is None else before + square

    def _summed(self) -> dict[str, float]:
        names = [name for name in TOWERS if self._towers is not None and name in self._towers]
        device = next(iter(self._squares.values())).device
        zero = torch.zeros((), device=device)
        squares = torch.stack([self._squares.get(name, zero) for name in names])
        if self._is_shared:
            dist.all_reduce(squares)
        return dict(zip(names, squares.tolist(), strict=True))

    def _whole(self) -> float | None:
        norm = self._engine.get_global_grad_norm()
        if norm is None:
            return None
        now = _loss_scale(self._engine)
        if keeps_scale_in_norm(self._engine):
            return float(norm) / self._scale
        # Stage 3 divides by the scale of the next step.
        is_stage_3 = hasattr(self._engine.optimizer, "fp32_partitioned_groups_flat")
        return float(norm) * (now / self._scale if is_stage_3 else 1.0)


def _square(gradients: list[Tensor]) -> Tensor:
    norms = torch._foreach_norm(gradients, 2, dtype=torch.float32)
    return torch.stack(norms).square().sum()


def _loss_scale(engine: Any) -> float:
    return float(getattr(engine.optimizer, "loss_scale", 1.0) or 1.0)
