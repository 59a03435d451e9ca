"""Whether lists of tensors can go into torch.ops.clipfast.adamw_ as they are."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from clipfast.ops.extension import load_extension

_EXTENSION = load_extension()
CAN_TELL = _EXTENSION is not None


def lists_fit(
    lists: Sequence[list[Tensor]],
    dtype: torch.dtype,
    stats_dtype: torch.dtype,
    master_dtype: torch.dtype | None,
    device: torch.device,
) -> bool:
    """Whether one step takes these lists: the operator's own checks, which here raise nothing.

    Quick, for hundreds of tensors of every step: no tensor's values are looked at, and nothing
    waits for a device.

    Args:
        lists: params, grads, exp_avgs, exp_avg_sqs, exponents, masters and steps.
        dtype: what every parameter should be.
        stats_dtype: what the statistics should be.
        master_dtype: what the masters should be; None where there should be none.
        device: where everything should be.

    Returns:
        Whether types, devices, shapes and orders in memory are right, and all are plain tensors.
        False where clipfast._C, which looks, is absent.
    """
    return _EXTENSION is not None and _EXTENSION.adamw_lists_fit(
        *lists, dtype, stats_dtype, master_dtype, device
    )
