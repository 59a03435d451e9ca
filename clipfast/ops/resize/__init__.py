"""Squares cut from pictures, resized and normalised, as the loaders need them on a CPU."""

from clipfast.ops.resize.operator import is_compiled, reference, resize_crops

__all__ = ["is_compiled", "reference", "resize_crops"]
