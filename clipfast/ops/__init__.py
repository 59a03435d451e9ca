"""Operators that clipfast fuses. Importing this loads the compiled extension where there is one."""

from clipfast.ops.normalize import l2_normalize

__all__ = ["l2_normalize"]
