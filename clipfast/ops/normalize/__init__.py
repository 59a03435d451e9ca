"""Fused L2 normalisation of rows: public operator, autograd, and the choice of implementation.

    forward:   inv_norm = |x| > eps ? 1 / |x| : 0        y = x * inv_norm
    backward:  u = x * inv_norm        grad_x = (grad_y - u <u, grad_y>) * inv_norm

One operator, torch.ops.clipfast.l2_normalize, has up to three implementations. The device of x
picks among those that this module finds when it is imported:

    CPU    csrc/normalize (vectorised, threaded); plain torch where clipfast._C is absent
    CUDA   csrc/normalize; else kernels/normalize (Triton); else plain torch
    other  plain torch
"""

from __future__ import annotations

import torch
from torch import Tensor

from clipfast.ops.registry import (
    Compiled,
    Gradient,
    Operator,
    Triton,
    declare,
    no_second_derivative,
)

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def accumulate_dtype(dtype: torch.dtype) -> torch.dtype:
    """The type that sums are held in: fp64 for fp64, fp32 for all else."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def row_norms(wide: Tensor) -> Tensor:
    """Lengths [B] of the rows of [B, D], scaled by the largest entry before they are squared, so
    that squares of 1e30 or 1e-30 stay in range."""
    largest = torch.linalg.vector_norm(wide, float("inf"), dim=1) if wide.shape[1] else wide.sum(1)
    scale = torch.where((largest > 0) & largest.isfinite(), largest, 1.0)
    return scale * torch.linalg.vector_norm(wide / scale[:, None], dim=1)


def reference_forward(
    x: Tensor, eps: float, out_dtype: torch.dtype | None = None
) -> tuple[Tensor, Tensor]:
    """(y, inv_norm) in plain torch."""
    wide = x.to(accumulate_dtype(x.dtype))
    norm = row_norms(wide)
    is_zero = norm <= max(eps, torch.finfo(wide.dtype).tiny)
    inv_norm = torch.where(is_zero, 0.0, 1.0 / norm)
    return (wide * inv_norm[:, None]).to(out_dtype or x.dtype), inv_norm


def reference_backward(grad_y: Tensor, x: Tensor, inv_norm: Tensor) -> Tensor:
    """grad_x in plain torch."""
    u = x.to(inv_norm.dtype) * inv_norm[:, None]
    grad = grad_y.to(inv_norm.dtype)
    dot = (u * grad).sum(dim=1, keepdim=True)
    return ((grad - u * dot) * inv_norm[:, None]).to(x.dtype)


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
    y, _ = torch.ops.clipfast.l2_normalize(x, eps, out_dtype)
    return y


def _fake_forward(x: Tensor, eps: float, out_dtype: torch.dtype | None = None):
    y = x.new_empty(x.shape, dtype=out_dtype or x.dtype)
    return y, x.new_empty(x.shape[:1], dtype=accumulate_dtype(x.dtype))


def _fake_backward(grad_y: Tensor, x: Tensor, inv_norm: Tensor) -> Tensor:
    return x.new_empty(x.shape)


def _setup_context(ctx, inputs, output) -> None:
    x, _, _ = inputs
    _, inv_norm = output
    # x is alive anyway as the tower's output, so saving it costs nothing and y may be dropped.
    ctx.save_for_backward(x, inv_norm)
    ctx.mark_non_differentiable(inv_norm)


def _backward(ctx, grad_y: Tensor, _grad_inv_norm: Tensor | None):
    x, inv_norm = ctx.saved_tensors
    return torch.ops.clipfast.l2_normalize_backward(grad_y, x, inv_norm), None, None


declare(
    Operator(
        name="l2_normalize",
        schema="(Tensor x, float eps, ScalarType? out_dtype=None) -> (Tensor y, Tensor inv_norm)",
        plain=reference_forward,
        fake=_fake_forward,
        gradient=Gradient(_backward, _setup_context),
        forms=(Compiled("cpu"), Compiled("cuda"), Triton("normalize:launch_l2_normalize")),
    )
)
declare(
    Operator(
        name="l2_normalize_backward",
        schema="(Tensor grad_y, Tensor x, Tensor inv_norm) -> Tensor grad_x",
        plain=reference_backward,
        fake=_fake_backward,
        gradient=no_second_derivative("l2_normalize", "normalize.reference"),
        forms=(Compiled("cpu"), Compiled("cuda"), Triton("normalize:launch_l2_normalize_backward")),
    )
)
