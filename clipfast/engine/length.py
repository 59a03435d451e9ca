"""How many steps a run takes, and how many of them warm up."""

import math
from dataclasses import dataclass

from clipfast.engine.config import MOST_STEPS, ConfigError, ScheduleConfig


@dataclass(frozen=True)
class Length:
    """The length of a run.

    Attributes:
        steps: in all.
        warmup: of linear warm-up among them.
    """

    steps: int
    warmup: int

    @classmethod
    def of(cls, schedule: ScheduleConfig, batches_per_epoch: int) -> "Length":
        """Steps of a schedule; the warm-up takes half of them at most.

        Raises:
            ConfigError: more steps than names of checkpoints can count.
        """
        steps = schedule.max_steps or math.ceil(schedule.epochs * batches_per_epoch)
        if steps > MOST_STEPS:
            raise ConfigError(
                f"--schedule.epochs {schedule.epochs:g} are {steps:,} steps of "
                f"{batches_per_epoch:,} an epoch; a run has {MOST_STEPS:,} at most"
            )
        return cls(steps, min(schedule.warmup_steps, steps // 2))
