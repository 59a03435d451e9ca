"""pyarrow for tables of captions, and what its arrays are of."""

from __future__ import annotations

from typing import Any

import numpy as np

from clipfast.data.arrow import import_arrow


def arrow() -> Any:
    """pyarrow with the modules that are used here.

    Raises:
        ValueError: it is not installed.
    """
    return import_arrow(
        "tables of captions are read by pyarrow, which is not installed: pip install pyarrow"
    )


def parts(array: Any) -> tuple[np.ndarray, np.ndarray]:
    """Ends and bytes of texts, where they lie.

    Args:
        array: of pyarrow, large_string or large_binary, without nulls.

    Returns:
        ``[N + 1]`` int64 and ``[bytes]`` uint8: text i is ``bytes[ends[i]:ends[i + 1]]``.
    """
    _, offsets, data = array.buffers()
    if not len(array):
        return np.zeros(1, np.int64), np.empty(0, np.uint8)
    ends = np.frombuffer(offsets, np.int64)[array.offset : array.offset + len(array) + 1]
    return ends, np.frombuffer(data, np.uint8) if data else np.empty(0, np.uint8)


def whole(array: Any) -> Any:
    """A chunked array in one piece."""
    joined = array.combine_chunks()
    return joined.chunk(0) if hasattr(joined, "chunk") else joined
