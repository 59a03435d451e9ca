"""Selections put together: and, or, without."""
