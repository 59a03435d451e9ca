"""Bytes that a rank holds beside activations: weights, gradients, what the optimizer keeps."""

from dataclasses import dataclass

import torch
from torch import nn

from clipfast.engine.deepspeed.settings import BUCKET
from clipfast.engine.optimizer import STATISTICS
from clipfast.engine.plan import RunPlan
from clipfast.models import num_parameters
from clipfast.ops.adamw import BLOCK
from clipfast.optim import parameter_groups
from clipfast.optim.states import state_bytes_per_parameter


@dataclass(frozen=True)
class StateBytes:
    """Bytes that a rank holds beside activations.

    Attributes:
        weights: that the model computes with.
        gradients: and their sums over micro-batches.
        optimizer: masters, remainders and Adam's statistics.
        passing: what comes and goes: the gradient in the optimizer's type while it steps, buckets
            on their way between ranks, what stage 3 gathers.
    """

    weights: int
    gradients: int
    optimizer: int
    passing: int = 0

    @property
    def total(self) -> int:
        """All of them at once."""
        return self.weights + self.gradients + self.optimizer + self.passing


def saved_bytes(plan: RunPlan, model: nn.Module) -> int:
    """What a checkpoint of all ranks takes on the disk.

    Args:
        plan: of the run.
        model: whole, as below ZeRO stage 3.
    """
    held = state_bytes(plan, model)
    if plan.stage:
        return held.optimizer * plan.process.world_size
    # What the optimizer updates is the model's own weights, or a copy that it holds.
    return held.optimizer + (held.weights if plan.dtype == torch.float32 else 0)


def state_bytes(plan: RunPlan, model: nn.Module) -> StateBytes:
    """What a rank holds beside activations.

    Args:
        plan: of the run.
        model: its parameters are counted, wherever they are.
    """
    options, stage, ranks = plan.config.optimizer, plan.stage, plan.process.world_size
    parameters = num_parameters(model)
    width = plan.dtype.itemsize
    # What the optimizer is given; a copy beside the model's weights wherever DeepSpeed wraps it.
    given = plan.dtype if plan.optimizer_holds_masters else torch.float32
    copied = stage > 0 or given != plan.dtype
    groups = parameter_groups(
        model, 0.0, image={"weights": options.image_weights}, text={"weights": options.text_weights}
    )

    def share(count: int) -> float:
        """Of a parameter's elements on a rank, where ranks share them."""
        # Stage 3 gives every rank a part of each, on the grid of statistics.
        return -(-count // (BLOCK * ranks)) * BLOCK if stage == 3 else count / ranks

    shared = sum(share(parameter.numel()) for parameter in model.parameters())
    held = shared if stage else parameters
    optimizer = held * given.itemsize * copied + sum(
        (share(parameter.numel()) if stage else parameter.numel())
        * state_bytes_per_parameter(STATISTICS[options.stats], group["weights"], given)
        for group in groups
        for parameter in group["params"]
    )
    passing = held * given.itemsize * copied
    weights: float = parameters * width
    gradients = (shared if stage >= 2 else parameters) * width
    if stage and plan.sums_in_float32:
        gradients += (shared if stage >= 2 else parameters) * 4
    if stage == 3:
        weights = shared * width
        # What is gathered for a forward lies beside the shares: at most the largest tensors.
        passing += 2 * width * max(p.numel() for p in model.parameters())
    if ranks > 1 and stage:
        passing += 2 * width * min(BUCKET, parameters)
    return StateBytes(*(round(count) for count in (weights, gradients, optimizer, passing)))
