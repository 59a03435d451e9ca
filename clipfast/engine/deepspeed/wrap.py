"""A model and its optimizer in a DeepSpeed engine, and what a run reads and sets on it."""

import logging
from typing import Any

import torch
from torch.optim import Optimizer

from clipfast.engine.deepspeed.contents import EngineContents
from clipfast.engine.deepspeed.few_kernels import look_once
from clipfast.engine.deepspeed.grid import on_the_grid
from clipfast.engine.deepspeed.half_stage0 import forget_first_step
from clipfast.engine.deepspeed.norms import GradientNorms, keep_clipped_norm, towers_of
from clipfast.engine.deepspeed.places import number_elements
from clipfast.engine.deepspeed.settings import deepspeed_settings
from clipfast.engine.plan import RunPlan
from clipfast.models import CLIP
from clipfast.models.towers import tower_of


def initialise_engine(
    plan: RunPlan, model: CLIP, optimizer: Optimizer, settings: dict[str, Any] | None = None
) -> Any:
    """Wrap a model and its optimizer.

    Args:
        plan: of the run.
        model: on the run's device.
        optimizer: of its parameters.
        settings: the dictionary that DeepSpeed takes; None makes it from the plan.

    Returns:
        The DeepSpeed engine.
    """
    import deepspeed

    from clipfast.engine.deepspeed.files import CheckpointFiles

    # Its warnings here are about choices made on purpose, such as an optimizer of our own.
    deepspeed.utils.logger.setLevel(logging.ERROR)
    leaves = list(tower_of(plan.architecture.vision).zero3_leaves)
    if plan.stage == 3 and leaves:
        # Modules that read weights of their children without calling them: all are gathered at
        # their door.
        deepspeed.utils.set_z3_leaf_modules(model, leaves, raise_if_not_found=False)
    towers = towers_of(model, optimizer)
    with on_the_grid():
        engine, *_ = deepspeed.initialize(
            model=model,
            optimizer=optimizer,
            config=deepspeed_settings(plan) if settings is None else settings,
        )
    if plan.stage == 0 and plan.process.world_size == 1:
        # With nobody to reduce with, DeepSpeed still copies all gradients into one tensor and back.
        engine.enable_backward_allreduce = False
    forget_first_step(engine)
    look_once(engine)
    keep_clipped_norm(engine)
    engine.gradient_norms = GradientNorms(engine, towers, plan.stage)
    number_elements(engine)
    engine.checkpoint_engine = CheckpointFiles()
    contents = EngineContents(engine, plan.process)
    # What DeepSpeed itself would save is neither free of pickles nor for other numbers of ranks.
    engine.save_checkpoint = contents.save
    engine.contents = contents
    return engine


def set_learning_rate(engine: Any, lr: float) -> None:
    """Of every parameter group, for the next step."""
    for group in engine.optimizer.param_groups:
        group["lr"] = lr


def step_figures(engine: Any, dtype: torch.dtype) -> dict[str, float]:
    """What DeepSpeed and the optimizer know of the last step. A collective.

    Args:
        engine: the DeepSpeed engine; its ``gradient_norms`` observed the step.
        dtype: of weights and activations.

    Returns:
        ``grad_norm`` and ``grad_norm/TOWER``; ``loss_scale`` and ``skipped_steps`` in fp16;
        ``skipped_steps`` elsewhere once there are some.
    """
    figures = engine.gradient_norms.figures()
    if dtype == torch.float16:
        figures["loss_scale"] = float(engine.optimizer.loss_scale)
        figures["skipped_steps"] = engine.skipped_steps
    elif skipped := engine.skipped_steps or getattr(engine.optimizer, "skipped_steps", 0):
        figures["skipped_steps"] = skipped
    return figures
