"""Runs to plan for, small enough to be counted at once."""

from clipfast.engine import Config, ModelOptions, ScheduleConfig
from clipfast.plan.machines import MACHINES
from clipfast.plan.question import Question


def question(gpus: int = 8, gpu: str = "a100-80gb", **options) -> Question:
    """A run of RN-tiny on GPUs.

    Args:
        gpus: how many.
        gpu: which.
        options: fields of the configuration.
    """
    options = {
        "model": ModelOptions("RN-tiny", compile="none"),
        "batch_size": 1024,
        "schedule": ScheduleConfig(epochs=2, warmup_steps=10),
        **options,
    }
    return Question(Config(**options), MACHINES[gpu], gpus, caption_tokens=22, pairs=102_400)
