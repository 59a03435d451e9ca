"""Fused L2 normalisation of the rows of a matrix."""

from clipfast.ops.dtypes import DTYPES, accumulate_dtype
from clipfast.ops.normalize.operator import l2_normalize, reference
from clipfast.ops.normalize.plain import row_norms

__all__ = ["DTYPES", "accumulate_dtype", "l2_normalize", "reference", "row_norms"]
