"""Products with the weights: the library's GEMM, accumulating in fp32."""

from __future__ import annotations

import functools

import torch


def multiply(
    out: torch.Tensor, left: torch.Tensor, right: torch.Tensor, alpha: float, accumulate: bool
) -> None:
    """out = alpha left right (+ out); no operand is copied on a GPU.

    Args:
        out: [M, N] fp32.
        left: [M, K] fp16, bf16 or fp32.
        right: [K, N], the type of left.
        alpha: factor of the product.
        accumulate: whether what out holds is added.
    """
    beta = 1.0 if accumulate else 0.0
    if left.dtype == torch.float32 or not left.is_cuda:
        torch.addmm(out, left.float(), right.float(), beta=beta, alpha=alpha, out=out)
    elif _has_wide_addmm():
        options = {"beta": beta, "alpha": alpha, "out_dtype": torch.float32, "out": out}
        torch.addmm(out, left, right, **options)
    elif accumulate:
        out.add_(torch.mm(left, right, out_dtype=torch.float32), alpha=alpha)
    else:
        torch.mm(left, right, out_dtype=torch.float32, out=out)
        out.mul_(alpha)


@functools.cache
def _has_wide_addmm() -> bool:
    """Whether addmm adds half-precision products to an fp32 matrix (pytorch#167931, torch 2.10)."""
    major, minor = torch.__version__.split(".")[:2]
    return (int(major), int(minor)) >= (2, 10)
