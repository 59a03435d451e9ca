"""Which of many queries stand in texts, as runs of whole words.

A trie over word numbers, one `HashedMap` per depth that leads from (node, word) to a node. All
places of all texts walk down it together, one word per step, so that the work is numpy's. Flags of
the nodes and of the words end most walks before a look-up.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from clipfast.curate.engine.parts import arrow
from clipfast.curate.text.hashed import HashedMap
from clipfast.curate.text.words import Words, query_words, words_of


@dataclass(frozen=True, eq=False)
class _Depth:
    """Nodes of one depth.

    Attributes:
        steps: from node * words + word to a node of this depth; None at the first depth.
        query: [N] int64, the query that ends at a node, or -1.
        goes_on: [N] bool, whether a query goes on behind a node.
    """

    steps: HashedMap | None
    query: np.ndarray
    goes_on: np.ndarray


class Trie:
    """Queries made ready to be looked for.

    Args:
        queries: Q texts of different words.
        rule: what words are, see ``clipfast.curate.text.words``.

    Raises:
        ValueError: a query has no word, or two have the same words.
    """

    def __init__(self, queries: Sequence[str], rule: str = "clipfast") -> None:
        self.rule = rule
        self.queries = len(queries)
        words = query_words(queries, rule)
        self._words = words.distinct
        self._count = len(words.distinct)
        length = np.bincount(words.text, minlength=len(queries))
        if len(queries) and length.min() == 0:
            raise ValueError(f"query {queries[int(length.argmin())]!r} has no word")
        starts = np.cumsum(length) - length
        self._depths: list[_Depth] = []
        # [Q] the node that each query has come to.
        node = np.zeros(len(queries), np.int64)
        for depth in range(int(length.max(initial=0))):
            here = np.flatnonzero(length > depth)
            word = words.code[starts[here] + depth]
            keys, at = np.unique(node[here] * self._count + word, return_inverse=True)
            node[here] = at
            ends = here[length[here] == depth + 1]
            query = np.full(len(keys), -1, np.int64)
            query[node[ends]] = ends
            if len(twice := ends[query[node[ends]] != ends]):
                other = queries[int(query[node[twice[0]]])]
                raise ValueError(f"queries {queries[int(twice[0])]!r} and {other!r} are the same")
            goes_on = np.zeros(len(keys), bool)
            goes_on[node[here[length[here] > depth + 1]]] = True
            steps = HashedMap(keys, np.arange(len(keys))) if depth else None
            self._depths.append(_Depth(steps, query, goes_on))
            if depth == 0:
                # [V + 1] the node of a first word, or -1; the last entry is for unknown words.
                self._first = np.full(self._count + 1, -1, np.int64)
                self._first[keys] = np.arange(len(keys))
            elif depth == 1:
                self._is_second = np.zeros(self._count + 1, bool)
                self._is_second[keys % self._count] = True

    def match(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Which queries stand in which texts.

        Args:
            texts: N of them.

        Returns:
            Two arrays [M] int64, text and query of each match: each once, in rising order.
        """
        return self.match_words(words_of(texts, self.rule))

    def match_words(self, words: Words) -> tuple[np.ndarray, np.ndarray]:
        """The same of texts that are taken apart."""
        nothing = np.empty(0, np.int64)
        if not self._depths or not len(words.code):
            return nothing, nothing
        known = arrow().compute.index_in(words.distinct, self._words).fill_null(-1)
        # One more at the end, unknown: what is behind the last word.
        word = np.append(known.to_numpy(zero_copy_only=False).astype(np.int64)[words.code], -1)
        text = np.append(words.text, -1)
        node = self._first[word]
        at = np.flatnonzero(node >= 0)
        node = node[at]
        found = []
        for depth, here in enumerate(self._depths):
            if depth:
                at, node = self._step(depth, at, node, word, text)
            query = here.query[node]
            ends = query >= 0
            found.append((text[at[ends]].astype(np.int64) << 32) | query[ends])
            if not len(at):
                break
        pairs = np.sort(np.concatenate(found))
        pairs = pairs[np.append(True, pairs[1:] != pairs[:-1])] if len(pairs) else pairs
        return pairs >> 32, pairs & 0xFFFFFFFF

    def _step(
        self, depth: int, at: np.ndarray, node: np.ndarray, word: np.ndarray, text: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Walk on by one word: first words and nodes of the walks that go on."""
        goes_on = self._depths[depth - 1].goes_on[node]
        at, node = at[goes_on], node[goes_on]
        # A walk that is alive at the end meets the unknown word there, and ends.
        place = at + depth
        following = word[place]
        alive = following >= 0
        if depth == 1:
            alive &= self._is_second[following]
        alive &= text[place] == text[at]
        at, node, following = at[alive], node[alive], following[alive]
        steps = self._depths[depth].steps
        assert steps is not None, "the first depth is no step"
        reached = steps.find(node * self._count + following)
        return at[reached >= 0], reached[reached >= 0]
