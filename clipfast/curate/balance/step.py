"""Which pairs stay: a pure step over shards and their matches."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from clipfast.curate.balance.draw import chances, draws
from clipfast.curate.engine.parts import read_table
from clipfast.curate.select.bits import choice_table
from clipfast.curate.select.combine import kept_rows
from clipfast.curate.select.within import EVERYTHING, Within
from clipfast.curate.text.matchfolder import Matched, MatchFolder
from clipfast.data.selection import Selection, choose


def matches(matched: Matched, selection: Selection | None) -> tuple[np.ndarray, np.ndarray]:
    """Row and query of the matches of those pairs that a selection keeps.

    Args:
        matched: a shard.
        selection: None keeps all.

    Returns:
        Two arrays [M] int64, rising.
    """
    shard, table = matched.shard, read_table(matched.path)
    row, query = (table[name].to_numpy().astype(np.int64) for name in ("row", "query"))
    kept = kept_rows(selection, shard.path, shard.samples, shard.mark)[row]
    return row[kept], query[kept]


def query_counts(folder: MatchFolder, selection: Selection | None) -> np.ndarray:
    """[Q] int64: pairs of each query, of those that a selection keeps."""
    queries = len(folder.queries.queries)
    counts = np.zeros(queries, np.int64)
    for query in _queries(folder, selection):
        counts += np.bincount(query, minlength=queries)
    return counts


def _queries(folder: MatchFolder, selection: Selection | None) -> Iterator[np.ndarray]:
    for matched in folder.matched:
        yield matches(matched, selection)[1]


@dataclass(frozen=True)
class Balance:
    """Pairs of a shard that stay.

    Attributes:
        match: name of the folder of matches, which tells queries and rule.
        counts: path of a table with the column count, pairs of each query.
        counts_digest: of the counts.
        at_most: t.
        seed: of the draws.
        rule: of the chances, see ``clipfast.curate.balance.draw``.
        within: what pairs are taken from.
    """

    match: str
    counts: str
    counts_digest: str
    at_most: int
    seed: int = 0
    rule: str = "any"
    within: Within = EVERYTHING
    name: ClassVar[str] = "balance"

    def options(self) -> dict[str, Any]:
        """See ``Step``."""
        return {
            "version": 1,
            "match": self.match,
            "counts": self.counts_digest,
            "at_most": self.at_most,
            "seed": self.seed,
            "rule": self.rule,
            "within": self.within.digest,
        }

    def table(self, item: Matched) -> Any:
        """One row, see ``clipfast.curate.select.bits``."""
        shard = item.shard
        row, query = matches(item, self.within.selection())
        taken = np.minimum(1.0, self.at_most / np.maximum(1, _counts(self.counts)))
        chance = chances(row, query, shard.samples, taken, self.rule)
        draw = draws(self.seed, shard.name, shard.table().keys())
        stays = np.flatnonzero(draw < chance)
        return choice_table(choose(shard.name, shard.samples, shard.mark, stays))


@functools.lru_cache(1)
def _counts(path: str) -> np.ndarray:
    counts: np.ndarray = read_table(path)["count"].to_numpy()
    return counts
