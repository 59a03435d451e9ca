"""The matrix products of the libraries that are here: what a floor is taken from."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from clipfast.ops import products
from clipfast.ops.products import library

Multiply = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(a [M, K], b [K, N], out [M, N]) -> a b, in `out` where the library can write there."""


def multipliers(dtype: torch.dtype, device: torch.device) -> dict[str, Multiply]:
    """a b by each library that multiplies this type on this device.

    Args:
        dtype: Of the matrices.
        device: Where they are.

    Returns:
        By name. ``torch.mm`` is cuBLAS on a GPU; on a CPU MKL in float32, oneDNN in bfloat16.
    """
    found: dict[str, Multiply] = {"torch.mm": lambda a, b, out: torch.mm(a, b, out=out)}
    if device.type == "cpu" and dtype == torch.float32:
        if torch.backends.mkldnn.is_available():
            found["oneDNN"] = lambda a, b, out: torch.ops.mkldnn._linear_pointwise(
                a, b.T, None, "none", [], ""
            )
        if library.has_onednn():
            found["clipfast.ops.products"] = lambda a, b, out: products.bmm(
                a[None], b[None], out=out[None]
            )[0]
    return found
