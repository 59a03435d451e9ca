"""The operators of the contrastive loss on one rank's strip of logits, and who implements them.

Legend: B rows (this rank's images), G columns (the texts of all ranks), D width of the embedding.
Rank r holds the pairs of columns first_column .. first_column + B - 1. With work features x and y,
u and v the features that the loss compares, s the logit scale:

    u_i = x_i f_i    v_j = y_j g_j    S_ij = s f_i g_j <x_i, y_j>     # f row_factor, g column_factor

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
    triton     kernels/contrastive.py: GEMM with the epilogue fused; sm_80 and newer
    torch      clipfast/ops/contrastive_reference.py: chunked plain torch, on any device
"""

from __future__ import annotations

import torch
from torch import Tensor

from clipfast.ops import contrastive_reference as plain
from clipfast.ops.extension import has_cuda_operators, has_triton, import_kernels, load_extension
from clipfast.ops.normalize import accumulate_dtype

_STRIP = "Tensor x, Tensor y, Tensor row_factor, Tensor column_factor, Tensor scale, Tensor bound"
_STATISTICS = (
    f"({_STRIP}, int first_column, bool keep, int workspace_bytes) -> (Tensor row_max, "
    "Tensor row_sum, Tensor column_max, Tensor column_sum, Tensor shift, Tensor kept)"
)
_GRADIENTS = (
    f"({_STRIP}, Tensor shift, Tensor row_lse, Tensor column_lse, Tensor kept, int first_column, "
    "bool want_rows, bool want_columns, int workspace_bytes) -> (Tensor row_grad, "
    "Tensor column_grad)"
)
SCHEMAS = {
    "contrastive_prepare": (
        "(Tensor x, bool normalize, ScalarType? work_dtype) -> (Tensor work, Tensor inverse_norm, "
        "Tensor factor, Tensor norm)"
    ),
    "contrastive_diagonal": (
        "(Tensor x, Tensor y, Tensor x_inverse_norm, Tensor y_inverse_norm) -> Tensor"
    ),
    "contrastive_finish": (
        "(Tensor grad, Tensor x, Tensor other, Tensor inverse_norm, Tensor other_inverse_norm, "
        "Tensor factor, Tensor diagonal, Tensor coefficient, bool normalize) -> (Tensor grad_x, "
        "Tensor dot)"
    ),
    "contrastive_statistics": _STATISTICS,
    "contrastive_gradients": _GRADIENTS,
}
PLAIN = {
    "contrastive_prepare": plain.prepare,
    "contrastive_diagonal": plain.diagonal,
    "contrastive_finish": plain.finish,
    "contrastive_statistics": plain.statistics,
    "contrastive_gradients": plain.gradients,
}
