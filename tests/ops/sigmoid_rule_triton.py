"""A second rule for the walk over the strip in Triton: nothing in kernels/ knows of it."""

from __future__ import annotations

import triton
import triton.language as tl

from clipfast.kernels.contrastive.constants import LN2, LOG2E
from clipfast.kernels.contrastive.rule import Rule


@triton.jit
def sigmoid_base(bound, log_columns):
    """Nothing is taken off a logit."""
    return 0.0


@triton.jit
def sigmoid_terms(logits, base, numbers_ptr):
    """softplus(S + b) along rows; sigmoid(S + b), its derivative, along columns."""
    z = logits * LN2 + tl.load(numbers_ptr)
    e = tl.exp2(-tl.abs(z) * LOG2E)
    sigmoid = tl.where(z >= 0, 1.0, e) / (1.0 + e)
    return tl.maximum(z, 0.0) + tl.log(1.0 + e), sigmoid


@triton.jit
def sigmoid_weights(logits, row_value, column_value, base, numbers_ptr):
    """row_value sigmoid(S + b)."""
    z = logits * LN2 + tl.load(numbers_ptr)
    e = tl.exp2(-tl.abs(z) * LOG2E)
    return row_value[:, None] * (tl.where(z >= 0, 1.0, e) / (1.0 + e))


SIGMOID = Rule(base=sigmoid_base, terms=sigmoid_terms, weights=sigmoid_weights)
