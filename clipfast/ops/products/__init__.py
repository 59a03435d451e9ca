"""Matrix products in float32 at the processor's own rate, for linear layers and small batches."""

from clipfast.ops.products.library import Libraries, current_libraries, set_libraries
from clipfast.ops.products.operator import bmm, linear

__all__ = ["Libraries", "bmm", "current_libraries", "linear", "set_libraries"]
