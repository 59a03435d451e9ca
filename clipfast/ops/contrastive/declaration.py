"""The operators of the contrastive loss on one rank's strip of logits.

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
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from clipfast.ops.contrastive import plain
from clipfast.ops.dtypes import accumulate_dtype
from clipfast.ops.registry import PLAIN, TRITON, Compiled, Operator, Triton, declare, overload

_STRIP = "Tensor x, Tensor y, Tensor row_factor, Tensor column_factor, Tensor scale, Tensor bound"


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


def _declare(
    name: str,
    schema: str,
    fake: Callable[..., Any],
    fakes: Mapping[str, Callable[..., Any]] | None = None,
) -> None:
    # Products of half-precision operands with fp32 results are in torch since 2.8.
    triton = Triton(f"contrastive:launch_{name}", least_torch=(2, 8))
    declare(
        Operator(
            name=f"contrastive_{name}",
            schema=schema,
            plain=getattr(plain, name),
            fake=fake,
            # Triton first: on an H200 it takes 13.4 ms where CUDA takes 18.1 ms, or 11.2 and 14.0
            # with kept logits (G 32,768, D 1,024, bf16).
            forms=(Compiled("cpu"), triton, Compiled("cuda")),
            chosen_by="caller",
            fakes=fakes or {},
        )
    )


_declare(
    "prepare",
    "(Tensor x, bool normalize, ScalarType? work_dtype) -> (Tensor work, Tensor inverse_norm, "
    "Tensor factor, Tensor norm)",
    _fake_prepare,
)
_declare(
    "diagonal",
    "(Tensor x, Tensor y, Tensor x_inverse_norm, Tensor y_inverse_norm) -> Tensor",
    _fake_diagonal,
)
_declare(
    "statistics",
    f"({_STRIP}, int first_column, bool keep, int workspace_bytes) -> (Tensor row_max, "
    "Tensor row_sum, Tensor column_max, Tensor column_sum, Tensor shift, Tensor kept)",
    functools.partial(_fake_statistics, lambda device: device.type == "cuda"),
    # What is kept, and so its type, is each implementation's own.
    {
        TRITON: functools.partial(_fake_statistics, lambda device: True),
        PLAIN: functools.partial(_fake_statistics, lambda device: False),
    },
)
_declare(
    "gradients",
    f"({_STRIP}, Tensor shift, Tensor row_lse, Tensor column_lse, Tensor kept, "
    "int first_column, bool want_rows, bool want_columns, int workspace_bytes) -> "
    "(Tensor row_grad, Tensor column_grad)",
    _fake_gradients,
)
_declare(
    "finish",
    "(Tensor grad, Tensor x, Tensor other, Tensor inverse_norm, Tensor other_inverse_norm, "
    "Tensor factor, Tensor diagonal, Tensor coefficient, bool normalize) -> (Tensor grad_x, "
    "Tensor dot)",
    _fake_finish,
)


class Operators(NamedTuple):
    """One implementation's five operators, as declared above."""

    prepare: Callable[..., tuple[Tensor, Tensor, Tensor, Tensor]]
    diagonal: Callable[..., Tensor]
    statistics: Callable[..., tuple[Tensor, ...]]
    gradients: Callable[..., tuple[Tensor, Tensor]]
    finish: Callable[..., tuple[Tensor, Tensor]]


def _operators(impl: str) -> Operators:
    names = (f"contrastive_{name}" for name in Operators._fields)
    return Operators(*(overload(name, impl) for name in names))


# A table and no cached function: torch.compile traces through what reads it.
OPERATORS = {impl: _operators(impl) for impl in ("cpu", "cuda", TRITON, PLAIN)}
