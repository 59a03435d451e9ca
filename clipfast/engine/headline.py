"""What a run says of itself before its first step."""

import torch

from clipfast.data.batch import TrainingData
from clipfast.engine.length import Length
from clipfast.engine.optimizer import describe
from clipfast.engine.plan import RunPlan


def headline(
    plan: RunPlan, loader: TrainingData, length: Length, parameters: int, first_step: int
) -> list[str]:
    """Lines for a person.

    Args:
        plan: of the run.
        loader: of its data.
        length: of the run.
        parameters: of the model.
        first_step: steps taken before, by the run that is resumed.
    """
    config, ranks = plan.config, plan.process.world_size
    lines = [
        f"{config.model.name}: {parameters / 1e6:.1f}M parameters, {_precision(plan)}, "
        f"ZeRO {plan.stage}, {ranks} x {plan.process.device.type}",
        f"batch {config.batch_size} = {ranks} ranks x {plan.local_batch}"
        + (f" in {plan.micro_batches} micro-batches" if plan.micro_batches > 1 else ""),
        f"{loader.contents}, {loader.batches_per_epoch} steps per epoch, {length.steps} steps in "
        f"all, {length.warmup} of them warm-up; writing to {plan.folder}",
    ]
    lines += describe(plan)
    if plan.micro_batch_note:
        lines.append(plan.micro_batch_note)
    if plan.recompute_note:
        lines.append(plan.recompute_note)
    if first_step:
        lines.append(f"resumed after step {first_step}")
    return lines


def _precision(plan: RunPlan) -> str:
    if plan.dtype != torch.float32 or plan.process.device.type != "cuda":
        return str(plan.dtype)
    return f"{plan.dtype} with products {'as TF32' if plan.uses_tf32 else 'in full'}"
