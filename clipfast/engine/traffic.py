"""Bytes that the collectives of a training step move: the one formula, for plans and for tests.

P parameters of w bytes each, W ranks, k micro-batches:

    stage   gradients                      weights
    0       all_reduce P w                 -
    1       all_reduce P w                 all_gather P w, after the update
    2       all_reduce P w, k times        all_gather P w, after the update
    3       reduce_scatter P w, k times    all_gather of the small ones after the update; of the
                                           others once a step, or 3 k times where k > 1

DeepSpeed 0.19 reduces a whole bucket at stages 1 and 2 too, where a reduce_scatter would do. At
stage 3 it keeps what it gathered until the backward pass where a step is one forward and one
backward pass, as long as fewer than 1e9 parameters lie between; every model of the package is
smaller. No graphs are kept there: each micro-batch is encoded twice. Gradients travel in the
weights' type, also where they are summed in float32.

Not counted: numbers of some bytes per step (norms, overflow, requests to stop), batch statistics
that ranks share, what the first steps agree on, evaluation, checkpoints. ``Transfer.sent`` gives
bytes on the wire.
"""

from collections.abc import Iterable

import torch
from torch import nn

from clipfast.engine.deepspeed.grid import flat_size, whole_size
from clipfast.engine.plan import RunPlan
from clipfast.loss.traffic import Transfer
from clipfast.optim import parameter_groups

# DeepSpeed's own: a parameter of at most so many elements stays whole at stage 3.
PERSISTENT = 100_000


def step_traffic(plan: RunPlan, model: nn.Module) -> list[Transfer]:
    """What the collectives of one step move.

    Args:
        plan: of the run; of any number of ranks and any device, which need not be there.
        model: its parameters are counted, wherever they are, the meta device included.

    Returns:
        One entry per tensor and kind of collective; none for one rank.
    """
    if plan.process.world_size == 1:
        return []
    return [*_loss(plan), *_gradients(plan, model), *_weights(plan, model)]


def bytes_sent(transfers: Iterable[Transfer], ranks: int) -> float:
    """Bytes that each rank puts on the wire in a step.

    Args:
        transfers: of ``step_traffic``.
        ranks: that share them.
    """
    return sum(transfer.sent(ranks) for transfer in transfers)


def _loss(plan: RunPlan) -> list[Transfer]:
    whole = plan.micro_batches == 1
    return plan.objective.transfers(
        plan.config.batch_size,
        plan.architecture.embed_dim,
        # Those of micro-batches are widened, and multiplied under autocast.
        plan.dtype if whole else torch.float32,
        plan.process.device,
        autocast=not whole and plan.dtype != torch.float32,
        behind_towers=whole,
    )


def _gradients(plan: RunPlan, model: nn.Module) -> list[Transfer]:
    ranks, k = plan.process.world_size, plan.micro_batches
    if plan.stage == 3:
        count = sum(whole_size(n, ranks) for n in _sizes(model))
        return [
            Transfer(
                *("gradients", "reduce_scatter", k * count * plan.dtype.itemsize, k),
                behind="backward",
            )
        ]
    count, times = sum(_sizes(model)), k if plan.stage == 2 else 1
    if plan.stage == 1 and plan.sums_in_float32:
        # Summed flat, group by group, with what the ranks' parts are filled up by.
        count = sum(_group_sizes(plan, model))
    return [Transfer("gradients", "all_reduce", times * count * plan.dtype.itemsize, times)]


def _weights(plan: RunPlan, model: nn.Module) -> list[Transfer]:
    ranks, k, item = plan.process.world_size, plan.micro_batches, plan.dtype.itemsize
    if plan.stage == 0:
        return []
    if plan.stage < 3:
        groups = _group_sizes(plan, model)
        return [Transfer("weights", "all_gather", sum(groups) * item, len(groups))]
    small = [n for n in _sizes(model) if n <= PERSISTENT]
    large = [n for n in _sizes(model) if n > PERSISTENT]
    times = 1 if k == 1 else 3 * k
    return [
        Transfer(
            *("weights", "all_gather", times * sum(whole_size(n, ranks) for n in large) * item),
            times * len(large),
            behind="forward and backward",
        ),
        Transfer(
            *("small weights", "all_gather", sum(whole_size(n, ranks) for n in small) * item),
            len(small),
        ),
    ]


def _sizes(model: nn.Module) -> list[int]:
    return [
        getattr(parameter, "ds_numel", parameter.numel())
        for parameter in model.parameters()
        if parameter.requires_grad
    ]


def _group_sizes(plan: RunPlan, model: nn.Module) -> list[int]:
    """Elements of each of the optimizer's groups, filled up so that every rank has equal parts."""
    return [
        flat_size([p.numel() for p in group["params"]], plan.process.world_size)
        for group in parameter_groups(model, 0.0)
    ]
