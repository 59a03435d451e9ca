"""What the softmax loss does with a logit, for the walk over the strip (strip.py).

    base      a = max(0, bound - 87 + ln G)
    terms     exp(S - a): one shift serves every row and column, so there is one exponential per
              logit, and sums of tiles simply add
    weights   P = exp(S - row_lse) + exp(S - column_lse)

Where that shift does not fit the data, a is NaN and sums come from true maxima (maxima.py).
"""

from __future__ import annotations

import triton
import triton.language as tl

from clipfast.kernels.contrastive.constants import LOG2E, SHIFT_MARGIN
from clipfast.kernels.contrastive.rule import Rule


@triton.jit
def softmax_base(bound, log_columns):
    """a = max(0, bound - 87 + ln G): no sum of G terms exp(S - a) overflows."""
    return tl.maximum(bound - SHIFT_MARGIN + log_columns, 0.0)


@triton.jit
def softmax_terms(logits, base, numbers_ptr):
    """exp(S - a), the same along rows and along columns."""
    terms = tl.exp2(logits - base * LOG2E)
    return terms, terms


@triton.jit
def softmax_weights(logits, row_lse, column_lse, base, numbers_ptr):
    """P = exp(S - row_lse) + exp(S - column_lse); with a base, from one exponential."""
    row_lse = row_lse * LOG2E
    column_lse = column_lse * LOG2E
    shift = base * LOG2E
    if shift == shift:
        row_weight, column_weight = tl.exp2(shift - row_lse), tl.exp2(shift - column_lse)
        weights = tl.exp2(logits - shift) * (row_weight[:, None] + column_weight[None, :])
    else:
        weights = tl.exp2(logits - row_lse[:, None]) + tl.exp2(logits - column_lse[None, :])
    return weights


SOFTMAX = Rule(base=softmax_base, terms=softmax_terms, weights=softmax_weights)
