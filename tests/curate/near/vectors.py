"""Files of made-up vectors, for the tests of this folder."""

from pathlib import Path

import numpy as np

from clipfast.curate.engine import write_table
from clipfast.curate.engine.parts import arrow
from clipfast.curate.near.vectors import Vectors, gather


def unit(rows: np.ndarray) -> np.ndarray:
    """Rows of length 1, as they are stored."""
    half: np.ndarray = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype("<f2")
    return half


def part(
    path: Path, rows: list[np.ndarray | None], mirrored: list[np.ndarray] | None = None
) -> str:
    """A table as ``Embeddings`` makes it; picture i has 100 + i pixels and i letters."""
    pa = arrow()
    width = 2 * next(len(row) for row in rows if row is not None)

    def column(values):
        data = [None if value is None else value.tobytes() for value in values]
        return pa.array(data, pa.binary(width))

    pixels = [None if row is None else 100 + i for i, row in enumerate(rows)]
    columns = {"vector": column(rows), "pixels": pa.array(pixels, pa.int64())}
    if mirrored is not None:
        columns["mirrored"] = column(mirrored)
    columns["letters"] = pa.array(range(len(rows)), pa.int64())
    write_table(str(path), pa.table(columns))
    return str(path)


def stored(
    folder: Path, rows: np.ndarray, mirrored: np.ndarray | None = None, looks: int = 1
) -> Vectors:
    """The file of the vectors of one shard."""
    folder.mkdir(exist_ok=True)
    flipped = None if mirrored is None else list(mirrored)
    return gather(str(folder), [part(folder / "part.parquet", list(rows), flipped)], looks)
