"""QuickGELU, the activation of CLIP's transformers."""

from clipfast.ops.quick_gelu.operator import quick_gelu, reference

__all__ = ["quick_gelu", "reference"]
