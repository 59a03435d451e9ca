"""All pairs by comparing each vector with each: a pure step over ranges of vectors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from clipfast.curate.near.chosen import one_thread
from clipfast.curate.near.looks import products
from clipfast.curate.near.pairs import SLACK, Collected, Rows
from clipfast.curate.near.vectors import Vectors

# A block of similarities: 1,024 x 16,384 in float32 are 64 MB; with several looks or mirrored
# pictures there are two.
_QUERIES, _BASE = 1024, 16_384


@dataclass(frozen=True)
class ExactPairs:
    """Pairs of the vectors of a range with later ones.

    Attributes:
        vectors: of all pictures.
        threshold: the lowest one.
    """

    vectors: Vectors
    threshold: float
    name: ClassVar[str] = "pairs"

    def options(self) -> dict[str, Any]:
        """See ``Step``."""
        return {"version": 1, "vectors": self.vectors.digest, "threshold": self.threshold}

    def table(self, item: Rows) -> Any:
        """See ``clipfast.curate.near.pairs.Collected``."""
        found = Collected(self.vectors, self.threshold)
        with one_thread():
            for start in range(item.start, item.stop, _QUERIES):
                stop = min(start + _QUERIES, item.stop)
                for base in range(start, self.vectors.distinct, _BASE):
                    self._block(found, start, stop, base)
        return found.table()

    def _block(self, found: Collected, start: int, stop: int, base: int) -> None:
        """The pairs of vectors from start to stop with those from base on."""
        end = min(base + _BASE, self.vectors.distinct)
        looks, plain = self.vectors.looks, self.vectors.vectors
        alike = products(plain[start:stop], plain[base:end], looks)
        if self.vectors.mirrored:
            flipped = self.vectors.flipped
            for one, other in ((plain, flipped), (flipped, plain)):
                more = products(one[start:stop], other[base:end], looks)
                torch.maximum(alike, more, out=alike)
        rows, columns = (alike >= found.floor - SLACK).nonzero(as_tuple=True)
        first, second = rows.numpy() + start, columns.numpy() + base
        later = second > first
        found.add(first[later], second[later])
