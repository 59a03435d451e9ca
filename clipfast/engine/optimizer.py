"""FusedAdamW under DeepSpeed: who keeps the exact weights, and which ZeRO stage that takes.

DeepSpeed 0.19 hands an optimizer float32 masters of its own, 4 bytes a parameter, except in bf16 at
stages 1 to 3 when told ``bf16_master_weights_and_grads``: there the optimizer gets the bf16 weights
themselves and keeps beside them what each group's policy asks for.
"""

import torch
from torch import nn

from clipfast.engine.config import Config, OptimizerConfig
from clipfast.engine.launch import Process
from clipfast.optim import FusedAdamW, parameter_groups
from clipfast.optim.options import bound_in

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# Between the first elements of two ranks' random bits: more than a rank can hold.
_ELEMENTS_OF_A_RANK = 2**40


def zero_stage(config: Config, dtype: torch.dtype, world_size: int) -> int:
    """The stage of ZeRO a run uses, "auto" resolved.

    Args:
        config: the run.
        dtype: of weights and activations.
        world_size: number of ranks.
    """
    if config.zero.stage != "auto":
        return config.zero.stage
    if dtype == torch.float32:
        return 0 if world_size == 1 else 1
    accumulates = config.micro_batches(world_size) > 1
    return 2 if accumulates and optimizer_holds_masters(config.optimizer, dtype, 2) else 1


def optimizer_holds_masters(options: OptimizerConfig, dtype: torch.dtype, stage: int) -> bool:
    """Whether the optimizer gets half-precision weights, and DeepSpeed keeps no float32 masters."""
    return dtype == torch.bfloat16 and stage > 0 and not options.has_exact_weights


def sums_in_float32(config: Config, dtype: torch.dtype, world_size: int) -> bool:
    """Whether half-precision gradients of several micro-batches are added up in float32.

    Not at stage 0, nor at stage 1 where the optimizer holds the masters: DeepSpeed serves float32
    sums there through ``BF16_Optimizer``, which keeps masters of its own.
    """
    stage = zero_stage(config, dtype, world_size)
    if config.micro_batches(world_size) == 1 or dtype == torch.float32 or stage == 0:
        return False
    return stage > 1 or not optimizer_holds_masters(config.optimizer, dtype, stage)


def build_optimizer(
    config: Config, process: Process, dtype: torch.dtype, model: nn.Module
) -> FusedAdamW:
    """The optimizer that DeepSpeed wraps, its learning rate 0 until the first step sets it.

    Args:
        config: the run.
        process: this rank; the ranks of a ZeRO stage above 0 round with random bits of their own,
            those of stage 0 with the same, so that their weights stay the same.
        dtype: of weights and activations.
        model: in float32.
    """
    options = config.optimizer
    stage = zero_stage(config, dtype, process.world_size)
    ours = optimizer_holds_masters(options, dtype, stage)
    # Where the tensor stays float32, stochastic weights keep to the values of this type.
    grid = None if ours else torch.float16 if dtype == torch.float16 else torch.bfloat16
    groups = parameter_groups(
        model,
        options.weight_decay,
        image={"weights": options.image_weights, "weights_dtype": grid},
        text={"weights": options.text_weights, "weights_dtype": grid},
    )
    for group in groups:
        if group.get("maximum") is not None:
            # The model computes with the nearest half of a float32 copy that DeepSpeed keeps.
            group["maximum"] = bound_in(group["maximum"], dtype, stochastic=False)
    return FusedAdamW(
        groups,
        lr=0.0,
        betas=(options.beta1, options.beta2),
        eps=options.eps,
        stats_dtype=DTYPES[options.stats],
        # Everywhere else DeepSpeed decides, for all ranks together: each holds a part.
        skip_nonfinite=stage == 0 and dtype == torch.float32,
        seed=config.seed,
        first_element=process.rank * _ELEMENTS_OF_A_RANK if stage else 0,
    )


def describe(config: Config, dtype: torch.dtype, world_size: int) -> list[str]:
    """Lines for a person on what is kept in less than float32; none where nothing is."""
    options = config.optimizer
    if options.stats == "fp32" and options.has_exact_weights:
        return []
    stage = zero_stage(config, dtype, world_size)
    lines = [
        f"Adam: {options.stats} statistics, {options.image_weights} image weights, "
        f"{options.text_weights} text weights"
    ]
    if not options.has_exact_weights and not optimizer_holds_masters(options, dtype, stage):
        half = "fp16" if dtype == torch.float16 else "bf16"
        lines.append(
            f"weights are held in float32 here (ZeRO {stage}, {dtype}): remainder is exact as it "
            f"is, stochastic keeps to values of {half}; bf16 at ZeRO 1 to 3 saves their bytes"
        )
    if (
        config.micro_batches(world_size) > 1
        and stage == 1
        and not sums_in_float32(config, dtype, world_size)
        and dtype != torch.float32
    ):
        lines.append(
            "gradients of micro-batches are summed in bf16: --zero-stage 2 sums in float32"
        )
    return lines
