"""What the page shows, counted."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from clipfast.curate.balance.step import matches
from clipfast.curate.select.combine import kept_rows
from clipfast.curate.text.matchfolder import MatchFolder
from clipfast.data.selection import Selection


@dataclass(frozen=True)
class ShardNumbers:
    """Of one shard.

    Attributes:
        name: of the tar.
        pairs: in its index.
        matched: those that hold a query.
        kept: those that the selection keeps.
    """

    name: str
    pairs: int
    matched: int
    kept: int


@dataclass(frozen=True, eq=False)
class Numbers:
    """Of all shards.

    Attributes:
        texts: Q queries.
        sources: [Q] where each comes from.
        before: [Q] int64, pairs that hold each.
        after: [Q] int64, those of them that the selection keeps.
        shards: in the order of their names.
    """

    texts: list[str]
    sources: list[str]
    before: np.ndarray
    after: np.ndarray
    shards: list[ShardNumbers]


def count(folder: MatchFolder, selection: Selection) -> Numbers:
    """Go over the matches once.

    Args:
        folder: of the matches.
        selection: of the same shards; one that it does not name is left out whole.

    Raises:
        ValueError: the selection was made of other indexes.
    """
    queries = folder.queries.queries
    before, after = np.zeros((2, len(queries)), np.int64)
    shards = []
    for matched in folder.matched:
        shard = matched.shard
        row, query = matches(matched, None)
        kept = kept_rows(selection, shard.path, shard.samples, shard.mark)
        before += np.bincount(query, minlength=len(queries))
        after += np.bincount(query[kept[row]], minlength=len(queries))
        holding = len(np.unique(row))
        shards.append(ShardNumbers(shard.name, shard.samples, holding, int(kept.sum())))
    texts, sources = [q.text for q in queries], [q.source or "given" for q in queries]
    return Numbers(texts, sources, before, after, shards)
