"""Batch norm of a training batch, fused with what follows it in a residual network."""

from clipfast.ops.batch_norm.operator import batch_norm, fused_here, reference
from clipfast.ops.batch_norm.shared import Sharing, shared_batch_norm, shared_statistics
from clipfast.ops.batch_norm.tail import Tail, plain_tail

__all__ = [
    "Sharing",
    "Tail",
    "batch_norm",
    "fused_here",
    "plain_tail",
    "reference",
    "shared_batch_norm",
    "shared_statistics",
]
