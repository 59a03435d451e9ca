"""Linear layers and batched products: the public functions.

    linear:   y = x W^T + b;  dx = dy W,  dW = dy^T x,  db = sum of dy's rows
    bmm:      c_i = a_i b_i

In float32 on the CPU they are clipfast's own operators, whose library `library.py` chooses.
Everywhere else (a GPU, half precision, autocast) they are torch's: F.linear and torch.bmm.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from clipfast.ops.products import library
from clipfast.ops.products.declaration import (
    bmm_operator,
    bmm_out_operator,
    linear_operator,
)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """y = x W^T + b, as F.linear.

    Args:
        x: [.., K], any float type.
        weight: [N, K], its rows or its columns contiguous: either is read in place, and its
            gradient lies as it does.
        bias: [N], or None.

    Returns:
        [.., N]. In float32 every product and sum is float32.
    """
    if _is_ours(x, weight) and (bias is None or bias.dtype is torch.float32):
        return linear_operator(x, weight, bias)
    return F.linear(x, weight, bias)


def bmm(a: Tensor, b: Tensor, out: Tensor | None = None) -> Tensor:
    """c_i = a_i b_i, as torch.bmm.

    Args:
        a: [B, M, K], any float type.
        b: [B, K, N], the type of a.
        out: [B, M, N] contiguous, written instead of a new tensor; has no gradient then.

    Returns:
        [B, M, N].
    """
    if not _is_ours(a, b):
        return torch.bmm(a, b, out=out)
    if out is None:
        return bmm_operator(a, b)
    bmm_out_operator(a, b, out)
    return out


def _is_ours(a: Tensor, b: Tensor) -> bool:
    """Whether a product of the two is float32 on the CPU, and so ours.

    Tensor subclasses have ways of their own to multiply.
    """
    if not (a.dtype is b.dtype is torch.float32 and a.device.type == b.device.type == "cpu"):
        return False
    if torch.is_autocast_enabled("cpu"):
        return False
    if not torch.compiler.is_compiling():
        library.choose_once()
    return True
