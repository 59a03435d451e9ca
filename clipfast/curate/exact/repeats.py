"""Which samples repeat another one: a pure step over ranges of digests.

A range holds the digests whose upper half lies in it. Ranges are looked at one by one, so that the
digests of all samples are never in memory together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from clipfast.curate.engine.parts import arrow, read_table

# Digests of a range, 28 bytes each and as much again to sort them.
_PER_RANGE = 20_000_000


@dataclass(frozen=True)
class Range:
    """One of several equal ranges of digests.

    Attributes:
        number: which, from 0.
        of: how many there are.
    """

    number: int
    of: int

    @property
    def part(self) -> str:
        """See ``clipfast.curate.engine.Item``."""
        return f"{self.number:05d}-of-{self.of:05d}"

    def holds(self, high: np.ndarray) -> np.ndarray:
        """[N] bool: which upper halves lie in it."""
        # Of 32 bits, so that the product fits into 64.
        place = ((high >> np.uint64(32)) * np.uint64(self.of)) >> np.uint64(32)
        return place == np.uint64(self.number)


def ranges(samples: int) -> list[Range]:
    """As many ranges as keep one small enough.

    Args:
        samples: digests that there are.
    """
    count = -(-max(1, samples) // _PER_RANGE)
    return [Range(number, count) for number in range(count)]


@dataclass(frozen=True)
class Repeats:
    """Samples whose digest another one has, in an earlier shard or row.

    Attributes:
        listing: path of a table with the column path: tables of ``Digests`` of S shards, in the
            order of their names.
        shards_digest: of the shards and of what they are compared by.
    """

    listing: str
    shards_digest: str
    name: ClassVar[str] = "repeats"

    def options(self) -> dict[str, Any]:
        """See ``Step``."""
        return {"version": 1, "shards": self.shards_digest}

    def table(self, item: Range) -> Any:
        """Columns shard and row of a sample to leave out, and first_shard and first_row of the one
        that stays; rising."""
        pieces = []
        for number, path in enumerate(read_table(self.listing)["path"].to_pylist()):
            table = read_table(path)
            known = np.flatnonzero(table["high"].is_valid().to_numpy())
            table = table.take(known)
            here = item.holds(table["high"].to_numpy())
            halves = (table[name].to_numpy()[here] for name in ("high", "low"))
            pieces.append((*halves, np.full(int(here.sum()), number), known[here]))
        high, low, shard, row = (np.concatenate(column) for column in zip(*pieces, strict=True))
        order = np.lexsort((row, shard, low, high))
        high, low, shard, row = high[order], low[order], shard[order], row[order]
        again = (np.diff(high) == 0) & (np.diff(low) == 0)
        again = np.append(np.zeros(min(1, len(high)), bool), again)
        # Of each sample, the place of the first one of its digest.
        first = np.maximum.accumulate(np.where(again, 0, np.arange(len(again))))[again]
        order = np.lexsort((row[again], shard[again]))
        columns = {
            "shard": shard[again],
            "row": row[again],
            "first_shard": shard[first],
            "first_row": row[first],
        }
        return arrow().table({name: column[order] for name, column in columns.items()})


def left_out(tables: Sequence[Any], shards: int) -> list[np.ndarray]:
    """Rows to leave out of each shard.

    Args:
        tables: of all ranges.
        shards: S.
    """
    table = arrow().concat_tables(tables)
    shard, row = table["shard"].to_numpy(), table["row"].to_numpy()
    order = np.lexsort((row, shard))
    ends = np.searchsorted(shard[order], np.arange(shards + 1))
    return [row[order][ends[i] : ends[i + 1]] for i in range(shards)]
