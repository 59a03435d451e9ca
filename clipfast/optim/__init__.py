"""Optimizer, parameter groups and learning-rate schedule of the paper."""

from clipfast.optim.fused_adamw import FusedAdamW
from clipfast.optim.groups import parameter_groups
from clipfast.optim.schedule import warmup_cosine
from clipfast.optim.states import state_bytes_per_parameter

__all__ = [
    "FusedAdamW",
    "parameter_groups",
    "state_bytes_per_parameter",
    "warmup_cosine",
]
