"""pyarrow, which reads and writes tables: optional, and imported where a table is met."""

from __future__ import annotations

from typing import Any


def import_arrow(absent: str) -> Any:
    """pyarrow with its modules for computing, CSV and Parquet.

    Args:
        absent: what is said where it is not installed.

    Raises:
        ValueError: it is not installed.
    """
    try:
        import pyarrow
        import pyarrow.compute
        import pyarrow.csv
        import pyarrow.parquet
    except ImportError:
        raise ValueError(absent) from None
    return pyarrow
