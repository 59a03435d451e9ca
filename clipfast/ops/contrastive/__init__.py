"""The operators of the contrastive loss on one rank's strip of logits, and who implements them.

Legend: B rows (this rank's images), G columns (the texts of all ranks), D width of the embedding.
Rank r holds the pairs of columns first_column .. first_column + B - 1. With work features x and y,
u and v the features that the loss compares, s the logit scale:

    u_i = x_i f_i    v_j = y_j g_j    S_ij = s f_i g_j <x_i, y_j>    # row_factor, column_factor

Normalisation is folded into f and g, so the products run on the towers' own outputs: a bf16 or fp16
feature is never rounded again. Pairs (j = first_column + i) are left out of all sums and products
here and added by the caller from unrounded features, so a fitted batch loses no digits.

    contrastive_prepare     x -> work features, 1/|x|, f, |u|
    contrastive_diagonal    <u_i, v_i> of the pairs
    contrastive_statistics  sum_j exp(S_ij) and sum_i exp(S_ij) in one pass over S
    contrastive_gradients   Q_ij = (exp(S_ij - row_lse_i) + exp(S_ij - column_lse_j)) f_i g_j,
                            then row_grad = Q y and column_grad = Q^T x
    contrastive_finish      from row_grad (or column_grad) to the gradient of the feature itself

Statistics and gradients exist several times; :func:`choose` says which one serves:

    cpu        csrc/contrastive: blocked GEMM with the epilogue in cache
    cuda       csrc/contrastive: cuBLAS over a chunk, then a fused epilogue; sm_70 and newer
    triton     kernels/contrastive: GEMM with the epilogue fused; sm_80 and newer
    plain      clipfast/ops/contrastive/plain.py: chunked plain torch, on any device
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from clipfast.ops import registry
from clipfast.ops.contrastive import plain
from clipfast.ops.extension import load_extension
from clipfast.ops.normalize import accumulate_dtype
from clipfast.ops.registry import PLAIN, TRITON, Compiled, Operator, Triton, declare

_STRIP = "Tensor x, Tensor y, Tensor row_factor, Tensor column_factor, Tensor scale, Tensor bound"
SCHEMAS = {
    "prepare": (
        "(Tensor x, bool normalize, ScalarType? work_dtype) -> (Tensor work, Tensor inverse_norm, "
        "Tensor factor, Tensor norm)"
    ),
    "diagonal": "(Tensor x, Tensor y, Tensor x_inverse_norm, Tensor y_inverse_norm) -> Tensor",
    "statistics": (
        f"({_STRIP}, int first_column, bool keep, int workspace_bytes) -> (Tensor row_max, "
        "Tensor row_sum, Tensor column_max, Tensor column_sum, Tensor shift, Tensor kept)"
    ),
    "gradients": (
        f"({_STRIP}, Tensor shift, Tensor row_lse, Tensor column_lse, Tensor kept, "
        "int first_column, bool want_rows, bool want_columns, int workspace_bytes) -> "
        "(Tensor row_grad, Tensor column_grad)"
    ),
    "finish": (
        "(Tensor grad, Tensor x, Tensor other, Tensor inverse_norm, Tensor other_inverse_norm, "
        "Tensor factor, Tensor diagonal, Tensor coefficient, bool normalize) -> (Tensor grad_x, "
        "Tensor dot)"
    ),
}
IMPLS = ("cpu", "cuda", TRITON, PLAIN)

_EXTENSION = load_extension()
_HAS_BFLOAT16_PRODUCT = _EXTENSION is not None and _EXTENSION.has_bfloat16_product
_logger = logging.getLogger("clipfast.loss")


class Operators(NamedTuple):
    """One implementation's five operators; see the head of this file and `SCHEMAS`."""

    prepare: Callable[..., tuple[Tensor, ...]]
    diagonal: Callable[..., Tensor]
    statistics: Callable[..., tuple[Tensor, ...]]
    gradients: Callable[..., tuple[Tensor, Tensor]]
    finish: Callable[..., tuple[Tensor, Tensor]]


class Choice(NamedTuple):
    """Who computes the loss, and in which type its products are taken."""

    impl: str
    work_dtype: torch.dtype | None  # None: the features as they come


def operators(impl: str) -> Operators:
    """The operators of an implementation that is available here."""
    return _OPERATORS[impl]


def available_impls(device: torch.device | str) -> list[str]:
    """Names of the implementations that can serve on a device, best first.

    Args:
        device: where the features are.

    Returns:
        Some of `IMPLS`. Interpreted Triton comes after plain torch: it is there for tests.
    """
    return registry.available_impls("contrastive_statistics", device)


def choose(impl: str, features: Tensor, autocast: bool = False) -> Choice:
    """Pick the implementation and the type of its products.

    Args:
        impl: "auto" or one of `IMPLS`.
        features: [B, D], either side.
        autocast: whether the caller works under autocast.

    Returns:
        The choice. Half-precision features are multiplied as fp16 on a GPU, because normalised
        features are bounded by 1 and fp16 holds three more bits of them than bf16; as bf16 on a CPU
        with instructions for it; as fp32 on others. fp32 features are multiplied as fp32, except
        under autocast on a GPU.

    Raises:
        ValueError: an unknown name, or one that cannot serve this device and type.
    """
    impl = registry.current_name(impl)
    names = available_impls(features.device)
    if impl not in ("auto", *IMPLS):
        raise ValueError(f"impl: expected one of auto, reference, {', '.join(IMPLS)}; got {impl!r}")
    if impl != "auto" and impl not in names:
        raise ValueError(
            f"impl={impl!r} cannot serve {features.device} here; what can: {', '.join(names)}"
        )
    if features.dtype == torch.float64:
        if impl not in ("auto", PLAIN):
            raise ValueError(f"impl={impl!r} has no float64; impl='plain' does")
        return Choice(PLAIN, None)
    name = names[0] if impl == "auto" else impl
    if not torch.compiler.is_compiling():
        _say_once(impl, name, str(features.device.type), features.dtype)
    return Choice(name, _work_dtype(name, features, autocast))


def _work_dtype(impl: str, features: Tensor, autocast: bool) -> torch.dtype | None:
    is_half = features.dtype in (torch.float16, torch.bfloat16)
    if impl in ("cuda", "triton"):
        return torch.float16 if is_half or autocast else torch.float32
    if impl == "cpu" and features.dtype == torch.bfloat16:
        # Products of bfloat16 take two elements at a time.
        return None if _HAS_BFLOAT16_PRODUCT and features.shape[1] % 2 == 0 else torch.float32
    return torch.float32 if is_half else None


@functools.cache
def _say_once(asked: str, name: str, device: str, dtype: torch.dtype) -> None:
    _logger.info("contrastive loss: impl=%s is %r for %s on %s", asked, name, dtype, device)


def _fake_prepare(x: Tensor, normalize: bool, work_dtype: torch.dtype | None):
    vectors = [x.new_empty(x.shape[:1], dtype=accumulate_dtype(x.dtype)) for _ in range(3)]
    work = x.new_empty(0) if work_dtype is None else x.new_empty(x.shape, dtype=work_dtype)
    return work, *vectors


def _fake_diagonal(x: Tensor, y: Tensor, x_inverse_norm: Tensor, y_inverse_norm: Tensor):
    return torch.empty_like(x_inverse_norm)


def _fake_statistics(
    keeps_fixed_point, x, y, row_factor, column_factor, scale, bound, first_column, keep, budget
):
    rows, columns = x.shape[0], y.shape[0]
    sums = [row_factor.new_empty(n) for n in (rows, rows, columns, columns, 1)]
    is_half = x.dtype in (torch.float16, torch.bfloat16)
    dtype = torch.int16 if is_half and keeps_fixed_point(x.device) else row_factor.dtype
    return *sums, x.new_empty((rows, columns) if keep else (0,), dtype=dtype)


# What is kept, and so its type, is each implementation's own.
_STATISTICS_FAKES = {
    "": functools.partial(_fake_statistics, lambda device: device.type == "cuda"),
    TRITON: functools.partial(_fake_statistics, lambda device: True),
    PLAIN: functools.partial(_fake_statistics, lambda device: False),
}


def _fake_gradients(
    x,
    y,
    row_factor,
    column_factor,
    scale,
    bound,
    shift,
    row_lse,
    column_lse,
    kept,
    first_column,
    want_rows,
    want_columns,
    workspace_bytes,
):
    return (
        row_factor.new_empty(x.shape if want_rows else (0,)),
        row_factor.new_empty(y.shape if want_columns else (0,)),
    )


def _fake_finish(
    grad, x, other, inverse_norm, other_inverse_norm, factor, diagonal, coefficient, normalize
):
    return x.new_empty(x.shape), torch.empty_like(inverse_norm)


# Triton's products of half-precision operands need torch's with fp32 results, of 2.8.
_TORCH = (2, 8)


def _declare(name: str, fake: Callable, fakes: dict[str, Callable]) -> None:
    launcher = f"contrastive:launch_{name}"
    declare(
        Operator(
            name=f"contrastive_{name}",
            schema=SCHEMAS[name],
            plain=getattr(plain, name),
            fake=fake,
            # Which of the two on a GPU is faster has not been measured yet.
            forms=(Compiled("cpu"), Triton(launcher, torch=_TORCH), Compiled("cuda")),
            chosen_by="caller",
            fakes=fakes,
        )
    )


_declare("prepare", _fake_prepare, {})
_declare("diagonal", _fake_diagonal, {})
_declare("statistics", _STATISTICS_FAKES[""], _STATISTICS_FAKES)
_declare("gradients", _fake_gradients, {})
_declare("finish", _fake_finish, {})


def _operators(impl: str) -> Operators:
    names = (f"contrastive_{name}" for name in Operators._fields)
    return Operators(*(registry.overload(name, impl) for name in names))


# A table and no cached function: torch.compile traces through what reads it.
_OPERATORS = {impl: _operators(impl) for impl in IMPLS}
