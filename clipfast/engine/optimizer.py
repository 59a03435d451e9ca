"""FusedAdamW as a run's plan asks for it.

DeepSpeed 0.19 hands an optimizer float32 masters of its own, 4 bytes per parameter, except in bf16
at stages 1 to 3 when told ``bf16_master_weights_and_grads``: there the optimizer gets the bf16
weights themselves and keeps beside them what each group's policy asks for.
"""

import torch
from torch import nn

from clipfast.engine.plan import RunPlan
from clipfast.optim import FusedAdamW, parameter_groups
from clipfast.optim.options import bound_in

STATISTICS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# Between the first elements of two ranks' random bits: more than a rank can hold.
_ELEMENTS_OF_A_RANK = 2**40


def build_optimizer(plan: RunPlan, model: nn.Module, rounding: str = "stochastic") -> FusedAdamW:
    """The optimizer that DeepSpeed wraps, its learning rate 0 until the first step sets it.

    The ranks of a ZeRO stage above 0 round with random bits of their own. Those of stage 0 round
    with the same ones, so that their weights stay the same.

    Args:
        plan: of the run.
        model: in float32.
        rounding: "nearest" where a benchmark shows what is lost by it.
    """
    options, dtype = plan.config.optimizer, plan.dtype
    # Where the tensor stays float32, stochastic weights keep to the values of this type.
    grid: torch.dtype | None = torch.float16 if dtype == torch.float16 else torch.bfloat16
    if plan.optimizer_holds_masters:
        grid = None
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
        stats_dtype=STATISTICS[options.stats],
        # Everywhere else DeepSpeed decides, for all ranks together: each holds a part.
        skip_nonfinite=plan.stage == 0 and dtype == torch.float32,
        rounding=rounding,
        seed=plan.config.seed,
        first_element=plan.process.rank * _ELEMENTS_OF_A_RANK if plan.stage else 0,
    )


def describe(plan: RunPlan) -> list[str]:
    """Lines for a person on what is kept in less than float32; none where nothing is."""
    options, half = plan.config.optimizer, plan.dtype != torch.float32
    if options.stats == "fp32" and options.has_exact_weights:
        return []
    lines = [
        f"Adam: {options.stats} statistics, {options.image_weights} image weights, "
        f"{options.text_weights} text weights"
    ]
    if not options.has_exact_weights and not plan.optimizer_holds_masters:
        grid = "fp16" if plan.dtype == torch.float16 else "bf16"
        lines.append(
            f"weights are held in float32 here (ZeRO {plan.stage}, {plan.dtype}): remainder is "
            f"exact as it is, stochastic keeps to values of {grid}; bf16 at ZeRO 1 to 3 saves "
            "their bytes"
        )
    if plan.micro_batches > 1 and plan.stage == 1 and half and not plan.sums_in_float32:
        lines.append(
            "gradients of micro-batches are summed in bf16: --zero-stage 2 sums in float32"
        )
    return lines
