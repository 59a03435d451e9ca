"""Tables as files whose bytes depend on their rows alone."""

from __future__ import annotations

import hashlib
import io
import json
from typing import Any

from clipfast.data.arrow import import_arrow
from clipfast.storage import storage_of

ENDING = ".parquet"


def arrow() -> Any:
    """pyarrow.

    Raises:
        ValueError: it is not installed.
    """
    return import_arrow(
        "curation keeps its tables as Parquet, by pyarrow, which is not installed: "
        "pip install 'clipfast[curate]'"
    )


def write_table(path: str, table: Any) -> None:
    """Write a table in one atomic step.

    Args:
        path: of the file, a local one or in a store.
        table: a ``pyarrow.Table``.

    Raises:
        OSError: it cannot be written.
    """
    buffer = io.BytesIO()
    # In one piece: how rows were put together must not show in the pages.
    arrow().parquet.write_table(table.combine_chunks(), buffer, compression="zstd")
    storage_of(path).write_atomic(path, buffer.getvalue())


def read_table(path: str) -> Any:
    """A table that ``write_table`` has written.

    Raises:
        ValueError: it is damaged.
        OSError: it cannot be read.
    """
    pa = arrow()
    data = storage_of(path).read(path)
    try:
        return pa.parquet.read_table(io.BytesIO(data), use_threads=False)
    except (pa.ArrowException, OSError) as error:
        first = str(error).partition("\n")[0]
        raise ValueError(f"{path} is no Parquet file: {first}; delete it and run again") from None


def digest(value: Any) -> str:
    """16 hexadecimal digits of what JSON holds."""
    text = json.dumps(value, sort_keys=True)
    return hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=8).hexdigest()
