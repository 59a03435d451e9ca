"""L2 normalisation of rows: the public operator, and what it must equal.

forward:   inv_norm = |x| > eps ? 1 / |x| : 0        y = x * inv_norm
backward:  u = x * inv_norm        grad_x = (grad_y - u <u, grad_y>) * inv_norm
"""

from __future__ import annotations

import torch
from torch import Tensor

from clipfast.ops.dtypes import DTYPES, accumulate_dtype
from clipfast.ops.normalize.declaration import forward_operator


def reference(x: Tensor, eps: float = 1e-12, out_dtype: torch.dtype | None = None) -> Tensor:
    """The operator as the equation reads, through torch's own autograd: the truth in tests.

    Args:
        x: [B, D] fp16, bf16, fp32 or fp64, norms within the range of their squares.
        eps: rows whose norm is at most this give zeros.
        out_dtype: type of the result; that of x where None.

    Returns:
        y [B, D].
    """
    wide = x.to(accumulate_dtype(x.dtype))
    square = (wide * wide).sum(dim=1, keepdim=True)
    is_zero = square <= eps * eps
    inv_norm = torch.where(is_zero, 0.0, torch.where(is_zero, 1.0, square).rsqrt())
    return (wide * inv_norm).to(out_dtype or x.dtype)


def l2_normalize(x: Tensor, eps: float = 1e-12, out_dtype: torch.dtype | None = None) -> Tensor:
    """Scales each row of a matrix to length 1, in one pass forward and one backward.

    y = x / |x|, and grad_x = (grad_y - y <y, grad_y>) / |x|.

    Equal to

        wide = x.float()
        y = (wide / wide.norm(dim=1, keepdim=True)).to(out_dtype)

    without allocating the fp32 copies. Sums are fp32 inside (fp64 for fp64), backward starts from
    x and not from the rounded y. Norms from the smallest normal number of that type (1.2e-38 for
    fp32) to its inverse are exact: squares do not overflow or vanish. A row whose norm is
    at most eps is a zero row: y and grad_x are zeros there, whereas torch.nn.functional.normalize
    divides it by eps and multiplies its gradient by 1/eps. The same bits come out on every run,
    whatever the number of threads. Only the first derivative is defined.

    Args:
        x: [B, D] fp16, bf16, fp32 or fp64; any strides (rows with adjacent elements are read in
            place, such as tokens[:, 0]).
        eps: norm up to which a row counts as zero, at least 0.
        out_dtype: type of the result; that of x where None. fp64 goes with fp64 only. CLIP's
            features are best held in fp16 even in a bf16 model: they are bounded by 1.

    Returns:
        y [B, D], contiguous, of out_dtype.

    Raises:
        TypeError: x or out_dtype is none of the four types, or only one of them is fp64.
        ValueError: x is no matrix, or eps is negative.

    Source: Radford et al. 2021, figure 3 (the joint embedding is L2-normalised).
    """
    if x.dim() != 2:
        raise ValueError(f"expected x of shape [B, D], got {list(x.shape)}: flatten it first")
    out = x.dtype if out_dtype is None else out_dtype
    if x.dtype not in DTYPES or out not in DTYPES:
        raise TypeError(
            f"expected fp32, fp64, fp16 or bf16, got x {x.dtype} and out_dtype {out_dtype}"
        )
    if (x.dtype == torch.float64) != (out == torch.float64):
        raise TypeError(f"float64 goes with float64 only, got x {x.dtype} and out_dtype {out}")
    if not eps >= 0:
        raise ValueError(f"expected eps of at least 0, got {eps}")
    y, _ = forward_operator(x, eps, out_dtype)
    return y
