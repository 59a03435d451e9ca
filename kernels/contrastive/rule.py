"""A rule: what a loss does with a logit. The walk over the strip (strip.py) takes any of them.

The walk forms tiles of logits, hands them to the rule, leaves pairs out, adds sums along rows and
columns, and multiplies the weights with the features. A rule never sees where a tile lies.
"""

from __future__ import annotations

from typing import NamedTuple

import triton


class Rule(NamedTuple):
    """Three `triton.jit` functions. Logits come to them in units of ln 2: S log2(e), in fp32.

    base(bound, log_columns)
        What sums are relative to, one number for the whole strip. bound: at least every |S_ij|.
        log_columns: ln G.

    terms(logits, base, numbers_ptr)
        What is summed along rows, and what is summed along columns, each of the shape of logits
        [rows, columns]; the walk leaves pairs out. numbers_ptr: the rule's own numbers on the
        device (a bias), or None where it has none.

    weights(logits, row_value, column_value, base, numbers_ptr)
        What the features are multiplied with, before the factors f and g. row_value [rows] and
        column_value [columns] are what the caller made of the sums. base: as the caller gives it.
    """

    base: triton.JITFunction
    terms: triton.JITFunction
    weights: triton.JITFunction
