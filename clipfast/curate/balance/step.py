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
from clipfast.curate.shards import ShardTable
from clipfast.curate.text.matchfolder import MatchFolder
from clipfast.data.selection import LEAST_WEIGHT, Selection, choose


def matches(matched: ShardTable, selection: Selection | None) -> tuple[np.ndarray, np.ndarray]:
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
        weights: each pair that has a chance stays, with the chance as its weight: an epoch has as
            many as one draw keeps, and each epoch others.
        captions: a pair is trained with the first of its captions that holds a query.
    """

    match: str
    counts: str
    counts_digest: str
    at_most: int
    seed: int = 0
    rule: str = "any"
    within: Within = EVERYTHING
    weights: bool = False
    captions: bool = False
    name: ClassVar[str] = "balance"

    def options(self) -> dict[str, Any]:
        """See ``Step``."""
        return {
            "version": 2,
            "match": self.match,
            "counts": self.counts_digest,
            "at_most": self.at_most,
            "seed": self.seed,
            "rule": self.rule,
            "within": self.within.digest,
            "weights": self.weights,
            "captions": self.captions,
        }

    def table(self, item: ShardTable) -> Any:
        """One row, see ``clipfast.curate.select.bits``."""
        shard = item.shard
        row, query = matches(item, self.within.selection())
        taken = np.minimum(1.0, self.at_most / np.maximum(1, _counts(self.counts)))
        chance = chances(row, query, shard.samples, taken, self.rule)
        more: dict[str, Any] = {}
        if self.weights:
            stays = np.flatnonzero(chance >= LEAST_WEIGHT)
            more["weights"] = np.minimum(1.0, chance[stays])
        else:
            draw = draws(self.seed, shard.name, shard.table().keys())
            stays = np.flatnonzero(draw < chance)
        if self.captions:
            more |= {"captions": _first_captions(item)[stays], "captions_of": shard.captions_of}
        return choice_table(choose(shard.name, shard.samples, shard.mark, stays, **more))


def _first_captions(matched: ShardTable) -> np.ndarray:
    """[N] int64: the first caption of each sample that holds a query; -1 where none does."""
    table = read_table(matched.path)
    row, caption = (table[name].to_numpy().astype(np.int64) for name in ("row", "caption"))
    none = np.iinfo(np.int64).max
    first = np.full(matched.shard.samples, none)
    np.minimum.at(first, row, caption)
    return np.where(first == none, -1, first)


@functools.lru_cache(1)
def _counts(path: str) -> np.ndarray:
    counts: np.ndarray = read_table(path)["count"].to_numpy()
    return counts
