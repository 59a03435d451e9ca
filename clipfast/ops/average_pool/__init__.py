"""Average pooling without overlap, of channels_last maps."""

from clipfast.ops.average_pool.operator import average_pool, average_pool_rows, serves

__all__ = ["average_pool", "average_pool_rows", "serves"]
