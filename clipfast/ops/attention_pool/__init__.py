"""Attention pooling with one query, which needs no keys and values of all tokens."""

from clipfast.ops.attention_pool.impls import (
    IMPLS,
    MAX_TRITON_SAMPLES,
    MAX_TRITON_TOKENS,
    available_impls,
    choose,
)
from clipfast.ops.attention_pool.operator import attention_pool, reference

__all__ = [
    "IMPLS",
    "MAX_TRITON_SAMPLES",
    "MAX_TRITON_TOKENS",
    "attention_pool",
    "available_impls",
    "choose",
    "reference",
]
