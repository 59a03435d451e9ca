"""Which captions hold which queries: a pure step over shards."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from clipfast.curate.engine.parts import arrow, read_table
from clipfast.curate.shards import Shard, captions
from clipfast.curate.text.queryfile import read_queries
from clipfast.curate.text.trie import Trie


@dataclass(frozen=True)
class Match:
    """Matches of a shard.

    Attributes:
        queries: path of their file.
        digest: of their texts.
        words: what words are, see ``clipfast.curate.text.words``.
    """

    queries: str
    digest: str
    words: str = "clipfast"
    name: ClassVar[str] = "match"

    def options(self) -> dict[str, Any]:
        """See ``Step``."""
        return {"version": 3, "queries": self.digest, "words": self.words}

    def table(self, item: Shard) -> Any:
        """Columns row, query and caption, uint32: each match once, rising by row and query.

        A sample of several captions holds a query that one of them holds; caption is the first that
        does.
        """
        pa = arrow()
        texts = list(captions(item))
        counts = [len(each) for each in texts]
        trie = _trie(self.queries, self.digest, self.words)
        text, query = trie.match([caption for each in texts for caption in each])
        row = np.repeat(np.arange(len(texts)), counts)[text]
        caption = text - (np.cumsum(counts, dtype=np.int64) - counts)[row]
        if len(row) and max(counts) > 1:
            order = np.lexsort((caption, query, row))
            row, query, caption = row[order], query[order], caption[order]
            first = np.append(True, (np.diff(row) != 0) | (np.diff(query) != 0))
            row, query, caption = row[first], query[first], caption[first]
        columns = {"row": row, "query": query, "caption": caption}
        return pa.table({name: column.astype(np.uint32) for name, column in columns.items()})


@functools.lru_cache(1)
def _trie(path: str, digest: str, rule: str) -> Trie:
    """Made once per process."""
    listed = read_queries(path, rule)
    if listed.digest != digest:
        raise ValueError(f"{path} has changed since the start: run again")
    return Trie([query.text for query in listed.queries], rule)


@dataclass(frozen=True)
class Totals:
    """Sums over shards.

    Attributes:
        pairs: with at least one query.
        matches: pairs and queries.
        counts: [Q] int64, pairs of each query.
    """

    pairs: int
    matches: int
    counts: np.ndarray


def totals(paths: Sequence[str], queries: int) -> Totals:
    """Add partial results; the order changes nothing.

    Args:
        paths: of tables of ``Match``.
        queries: how many there are.
    """
    counts = np.zeros(queries, np.int64)
    pairs = matches = 0
    for path in paths:
        table = read_table(path)
        row, query = table["row"].to_numpy(), table["query"].to_numpy()
        counts += np.bincount(query, minlength=queries)
        pairs += int(np.count_nonzero(np.diff(row.astype(np.int64), prepend=-1))) if len(row) else 0
        matches += len(row)
    return Totals(pairs, matches, counts)
