"""Optimizer, parameter groups and learning-rate schedule of the paper."""

from clipfast.optim.adamw import AdamW
from clipfast.optim.groups import parameter_groups
from clipfast.optim.schedule import warmup_cosine

__all__ = ["AdamW", "parameter_groups", "warmup_cosine"]
