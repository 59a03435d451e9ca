"""The most similar of many references, which come in parts and are not kept."""

from __future__ import annotations

import torch
from torch import Tensor

from clipfast.eval.ranking import cosines

_CHUNK, _BLOCK = 1024, 8192  # queries and references that are compared at a time: 64 MB


class Nearest:
    """Remembers the most similar reference of each query.

    Of references with equal similarity the first counts. Similarities are those of
    ``clipfast.eval.ranking``, exact on their grid, so equal features tie.

    Args:
        queries: ``[Q, D]``.

    Attributes:
        similarity: ``[Q]`` float64, of the most similar reference so far; -inf before the first.
        place: ``[Q]`` int64, its number; -1 before the first.
        ties: ``[Q]`` int64, how many references have this similarity.
    """

    def __init__(self, queries: Tensor) -> None:
        self._queries = queries
        self.similarity = torch.full((len(queries),), -torch.inf, dtype=torch.float64)
        self.place = torch.full((len(queries),), -1)
        self.ties = torch.zeros(len(queries), dtype=torch.int64)

    @torch.no_grad()
    def add(self, references: Tensor, places: Tensor) -> None:
        """Compare with more references.

        Args:
            references: ``[N, D]``.
            places: ``[N]`` int64, their numbers, ascending and above those before.
        """
        for first in range(0, len(references), _BLOCK):
            block = references[first : first + _BLOCK]
            numbers = places[first : first + _BLOCK]
            for start in range(0, len(self._queries), _CHUNK):
                rows = slice(start, start + _CHUNK)
                self._update(rows, cosines(self._queries[rows], block), numbers)

    def _update(self, rows: slice, scores: Tensor, numbers: Tensor) -> None:
        top = scores.amax(1)
        is_top = scores == top[:, None]
        last = numbers[-1]
        found = torch.where(is_top, numbers, last).amin(1)
        count, before = is_top.sum(1), self.similarity[rows]
        is_better, is_equal = top > before, top == before
        self.place[rows] = torch.where(is_better, found, self.place[rows])
        self.ties[rows] = torch.where(is_better, count, self.ties[rows] + count * is_equal)
        self.similarity[rows] = torch.maximum(top, before)
