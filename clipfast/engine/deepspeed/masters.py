"""The exact weights of a run, whoever keeps them and however they are shared."""

from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from clipfast.engine.deepspeed.half_stage0 import masters
from clipfast.optim.states import exact_weight


def exact_parameters(engine: Any) -> Iterator[tuple[str, Tensor]]:
    """Each parameter whole and in float32, from its master or remainder where there is one.

    ``safe_get_full_fp32_param`` gives no more than the half-precision weight where the optimizer,
    not DeepSpeed, holds what makes it exact. A collective: every rank runs through all of it.

    Args:
        engine: a DeepSpeed engine around FusedAdamW.

    Yields:
        Name and tensor, one parameter gathered at a time.
    """
    from deepspeed.utils import safe_get_full_fp32_param

    stage0_masters = masters(engine)
    for name, parameter in engine.module.named_parameters():
        if hasattr(parameter, "ds_id"):
            yield name, _gathered_at_stage_3(parameter)
        elif getattr(engine.optimizer, "bf16_master_weights_and_gradients", False):
            yield name, _gathered(engine, parameter)
        else:
            full = safe_get_full_fp32_param(parameter)
            # In float32 at ZeRO 0 there is no master: the parameter itself is all there is.
            yield name, stage0_masters.get(id(parameter), parameter) if full is None else full


def _gathered(engine: Any, parameter: Tensor) -> Tensor:
    """At stages 1 and 2: ranks hold parts of a flat tensor of all of a group's parameters."""
    full = torch.zeros(parameter.numel(), dtype=torch.float32, device=parameter.device)
    mapping = parameter._hp_mapping
    if mapping is not None:
        flat = engine.optimizer.single_partition_of_fp32_groups[mapping.param_group_index]
        source, target = mapping.hp_fragment_address, mapping.lp_fragment_address
        part = _exact_part(engine.optimizer.optimizer, flat, source.start, source.numel)
        full.narrow(0, target.start, target.numel).copy_(part)
    # The other ranks add zeros.
    dist.all_reduce(full)
    return full.view(parameter.shape)


def _gathered_at_stage_3(parameter: Tensor) -> Tensor:
    """Every rank holds an equal part of each parameter, padded at the end."""
    optimizer = parameter._z3_optimizer
    group, start, count = optimizer.grad_position[optimizer.get_param_id(parameter)]
    flat = optimizer.fp32_partitioned_groups_flat[group]
    part = _exact_part(optimizer.optimizer, flat, start, count)
    parts = [torch.empty_like(part) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, part)
    return torch.cat(parts)[: parameter.ds_numel].view(parameter.ds_shape)


def _exact_part(optimizer: Any, flat: Tensor, start: int, count: int) -> Tensor:
    """``optimizer.full_precision`` of a stretch of a flat tensor, float32."""
    kept = {
        key: value.narrow(0, start, count)
        for key, value in optimizer.state.get(flat, {}).items()
        if key in ("master", "remainder")
    }
    return exact_weight(flat.detach().narrow(0, start, count), kept)
