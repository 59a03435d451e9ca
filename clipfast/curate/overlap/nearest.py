"""The nearest training picture of each evaluation image: a pure step over shards."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from clipfast.curate.engine.parts import arrow, read_table
from clipfast.curate.near.chosen import one_thread
from clipfast.curate.near.embeddings import matrix
from clipfast.curate.near.looks import products, products_of_pairs
from clipfast.curate.shards import ShardTable

# A block of similarities: 2,048 x 8,192 in float32 are 64 MB.
_QUERIES, _BASE = 2048, 8192


@dataclass(frozen=True)
class Nearest:
    """The nearest picture of a shard, for each of Q vectors.

    Attributes:
        queries: path of a table with the columns vector, and mirrored where asked for.
        queries_digest: of it, and of the detector.
        looks: of the detector, see ``clipfast.curate.near.looks``.
    """

    queries: str
    queries_digest: str
    looks: int = 1
    name: ClassVar[str] = "nearest"

    def options(self) -> dict[str, Any]:
        """See ``Step``."""
        return {"version": 1, "queries": self.queries_digest}

    def table(self, item: ShardTable) -> Any:
        """Columns row (of the shard, int64; null where it has no picture) and similarity
        (float32), for each query. Of equal ones the first row counts."""
        sides = _queries(self.queries)
        train = read_table(item.path)
        rows = np.flatnonzero(train["vector"].is_valid().to_numpy())
        base = matrix(train.take(rows)["vector"])
        count = len(sides[0])
        best, at = np.full(count, -2, np.float32), np.zeros(count, np.int64)
        with one_thread():
            for side in sides:
                for start in range(0, count, _QUERIES):
                    stop = min(start + _QUERIES, count)
                    _improve(side[start:stop], base, best[start:stop], at[start:stop], self.looks)
        pa = arrow()
        missing = np.full(count, not len(rows))
        # A row that is not there stands for nothing.
        named = rows[at] if len(rows) else at
        return pa.table(
            {"row": pa.array(named, mask=missing), "similarity": pa.array(best, mask=missing)}
        )


def _improve(
    queries: np.ndarray, base: np.ndarray, best: np.ndarray, at: np.ndarray, looks: int
) -> None:
    """Take over what is nearer, in place."""
    for start in range(0, len(base), _BASE):
        block = base[start : start + _BASE]
        place = products(queries, block, looks).numpy().argmax(1)
        found = products_of_pairs(queries, block[place], looks).astype(np.float32)
        nearer = found > best
        best[nearer], at[nearer] = found[nearer], place[nearer] + start


@functools.lru_cache(1)
def _queries(path: str) -> list[np.ndarray]:
    table = read_table(path)
    return [matrix(table[name]) for name in ("vector", "mirrored") if name in table.column_names]


def merge(paths: Sequence[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The nearest of all shards.

    Args:
        paths: of the tables, in the order of the shards' names.

    Returns:
        Place of the shard, row and similarity, ``[Q]`` each; of equal ones the first shard counts.

    Raises:
        ValueError: no training picture decodes.
    """
    shard = row = best = None
    for place, path in enumerate(paths):
        table = read_table(path)
        if table["similarity"].null_count:
            continue
        found, at = table["similarity"].to_numpy(), table["row"].to_numpy()
        if best is None or shard is None or row is None:
            shard, row, best = np.full(len(found), place), at.copy(), found.copy()
            continue
        nearer = found > best
        shard[nearer], row[nearer], best[nearer] = place, at[nearer], found[nearer]
    if best is None or shard is None or row is None:
        raise ValueError("no picture of --train decodes: there is nothing to compare with")
    return shard, row, best
