"""How often words, and pairs of neighbours, occur in a corpus: pure steps over its pieces."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, ClassVar

import numpy as np

from clipfast.curate.engine.parts import arrow, digest, read_table
from clipfast.curate.queries.corpus import Piece
from clipfast.curate.text.words import Words, words_of

# Lines taken apart at a time.
_LINES = 20_000
# Partial counts added at a time: the sum is the same for any number.
_MERGED = 16


@dataclass(frozen=True)
class WordCounts:
    """Words of pieces and how often each occurs."""

    name: ClassVar[str] = "words"

    def options(self) -> dict[str, Any]:
        """See ``Step``."""
        return {"version": 1}

    def table(self, item: Piece) -> Any:
        """Columns word and count, rising by word."""
        pa = arrow()
        tables = []
        for words in _batches(item):
            # What was between words has a code and is none.
            code, count = np.unique(words.code, return_counts=True)
            tables.append(pa.table({"word": words.distinct.take(code), "count": count}))
        nothing = pa.table({"word": pa.array([], pa.string()), "count": _NONE})
        return added(tables or [nothing])


@dataclass(frozen=True)
class BigramCounts:
    """Pairs of neighbouring words of a line, both of them of a list, and how often each occurs.

    Attributes:
        words: path of a table with the column word, rising; rows are the words' numbers.
        words_digest: of the words.
    """

    words: str
    words_digest: str
    name: ClassVar[str] = "bigrams"

    def options(self) -> dict[str, Any]:
        """See ``Step``."""
        return {"version": 1, "words": self.words_digest}

    def table(self, item: Piece) -> Any:
        """Columns first and second, numbers of words, and count; rising by the two."""
        pa = arrow()
        listed = _word_list(self.words, self.words_digest)
        tables = []
        for words in _batches(item):
            number = pa.compute.index_in(words.distinct, listed).fill_null(-1)
            number = number.to_numpy(zero_copy_only=False).astype(np.int64)[words.code]
            first, second = number[:-1], number[1:]
            real = (first >= 0) & (second >= 0) & (words.text[:-1] == words.text[1:])
            pairs, count = np.unique((first[real] << 32) | second[real], return_counts=True)
            tables.append(
                pa.table({"first": pairs >> 32, "second": pairs & 0xFFFFFFFF, "count": count})
            )
        nothing = pa.table({"first": _NONE, "second": _NONE, "count": _NONE})
        return added(tables or [nothing])


_NONE = np.empty(0, np.int64)


@functools.lru_cache(1)
def _word_list(path: str, words_digest: str) -> Any:
    listed = read_table(path)["word"].combine_chunks()
    if digest(listed.to_pylist()) != words_digest:
        raise ValueError(f"{path} has changed since the start: run again")
    return listed


def _batches(piece: Piece) -> Iterator[Words]:
    lines = piece.lines()
    while batch := list(islice(lines, _LINES)):
        yield words_of(batch)


def added(tables: Sequence[Any]) -> Any:
    """One table of several: counts of equal rows are added, rows rise by the other columns.

    Args:
        tables: of equal columns, one of them "count".
    """
    table = arrow().concat_tables(tables)
    keys = [name for name in table.column_names if name != "count"]
    table = table.group_by(keys, use_threads=False).aggregate([("count", "sum")])
    table = table.rename_columns(
        ["count" if name == "count_sum" else name for name in table.column_names]
    )
    return table.select([*keys, "count"]).sort_by([(key, "ascending") for key in keys])


def added_parts(paths: Sequence[str]) -> Any:
    """The sum of partial counts. Few are in memory at a time.

    Args:
        paths: of their tables, at least one.
    """
    total = None
    for start in range(0, len(paths), _MERGED):
        tables = [read_table(path) for path in paths[start : start + _MERGED]]
        total = added(tables if total is None else [total, *tables])
    return total
