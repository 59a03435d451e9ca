"""The options of FusedAdamW's groups: their ranges, and how a checkpoint's are taken over."""

from __future__ import annotations

import math
from typing import Any

import torch

from clipfast.optim import states

# What a group says about the memory of its parameters: the running optimizer's, not a checkpoint's.
FORMAT_OPTIONS = ("stats_dtype", "weights", "weights_dtype")


def merged_options(mine: dict[str, Any], saved: dict[str, Any]) -> dict[str, Any]:
    """A checkpoint's group with what it lacks, and with this optimizer's formats."""
    for name in ("amsgrad", "maximize"):
        if saved.get(name):
            raise ValueError(
                f"expected the checkpoint of an AdamW without {name}, got one with it; continue "
                f"that run with torch.optim.AdamW"
            )
    if saved.get("weight_decay") and not saved.get("decoupled_weight_decay", True):
        raise ValueError(
            "expected the checkpoint of an AdamW, whose weight decay is decoupled, got one of "
            "torch.optim.Adam with a weight decay; set the decay of its groups to 0, or continue "
            "with torch.optim.Adam"
        )
    known = torch.optim.AdamW([torch.zeros(1)]).param_groups[0].keys() - mine.keys()
    kept = {key: value for key, value in saved.items() if key not in known}
    formats = {key: mine[key] for key in FORMAT_OPTIONS}
    defaults = {key: value for key, value in mine.items() if key not in ("params", "param_names")}
    return {**defaults, **kept, **formats}


def bound_in(maximum: float, dtype: torch.dtype, stochastic: bool) -> float:
    """The bound to update under, so that what is kept in a half type stays at or under ``maximum``.

    Args:
        maximum: bound of the weights from above.
        dtype: that the weights are rounded to.
        stochastic: whether at random, which reaches the next value above a weight.

    Returns:
        ``maximum``, or the largest value of ``dtype`` below it.
    """
    nearest = torch.tensor(maximum, dtype=torch.float64).to(dtype)
    if nearest.item() > maximum:
        return torch.nextafter(nearest, nearest.new_tensor(-math.inf)).item()
    return nearest.item() if stochastic else maximum


def check_options(group: dict[str, Any]) -> None:
    """Raises ValueError for an option out of its range."""
    betas = group["betas"]
    if len(betas) != 2 or not all(0.0 <= beta < 1.0 for beta in betas):
        raise ValueError(f"expected betas (beta1, beta2), each from 0 and below 1; got {betas}")
    for name in ("lr", "eps", "weight_decay"):
        if not group[name] >= 0.0:
            raise ValueError(f"expected {name} of at least 0, got {group[name]}")
    if group["stats_dtype"] not in states.STATS_DTYPES:
        raise ValueError(
            f"expected stats_dtype torch.float16, torch.bfloat16 or torch.float32, got "
            f"{group['stats_dtype']}"
        )
    if group["weights"] not in states.WEIGHTS:
        raise ValueError(
            f'expected weights "fp32", "remainder" or "stochastic", got {group["weights"]!r}'
        )
    if group["weights_dtype"] not in states.GRIDS:
        raise ValueError(
            f"expected weights_dtype torch.bfloat16, torch.float16 or None, got "
            f"{group['weights_dtype']}"
        )
    maximum = group["maximum"]
    if maximum is not None and math.isnan(maximum):
        raise ValueError("expected a maximum that is a number, or None for no bound; got nan")
