"""The matrix products of the libraries that are here: what a floor is taken from."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from clipfast.ops import products
from clipfast.ops.products import library

Multiply = Callable[[Tensor, Tensor], Tensor]


def multipliers(dtype: torch.dtype, device: torch.device) -> dict[str, Multiply]:
    """a b by each library that multiplies this type on this device.

    Args:
        dtype: Of a [M, K] and b [K, N].
        device: Where they are.

    Returns:
        By name. ``torch.mm`` is cuBLAS on a GPU; on a CPU MKL in float32, oneDNN in bfloat16.
    """
    found: dict[str, Multiply] = {"torch.mm": torch.mm}
    if device.type == "cpu" and dtype == torch.float32:
        if torch.backends.mkldnn.is_available():
            found["oneDNN"] = lambda a, b: torch.ops.mkldnn._linear_pointwise(
                a, b.T, None, "none", [], ""
            )
        if library.has_onednn():
            found["clipfast.ops.products"] = lambda a, b: products.linear(a, b.T)
    return found
