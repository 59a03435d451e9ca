"""Pairs among many vectors, by an index of faiss: a pure step over ranges of vectors.

An inverted file of product codes (IVF-PQ) proposes candidates, and the stored vectors judge them.
So no pair is wrong. Some are missed: those whose vectors lie in lists that a search does not visit,
or whose codes are far off.
"""

from __future__ import annotations

import functools
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from clipfast.curate.near.looks import split
from clipfast.curate.near.pairs import Collected, Rows
from clipfast.curate.near.vectors import Vectors
from clipfast.files import whole_file, write_whole

# Vectors that the index learns from, per list.
_PER_LIST = 64
_FEWEST = 256 * 40
# Dimensions per byte of code.
_PER_CODE = 4
_QUERIES = 1024
# Of the vectors looked at, one in so many may lose more by its code than the margin allows for.
_LOST = 200
# Shown below the threshold, in addition to the margin.
_BELOW = 0.02


def faiss() -> Any:
    """faiss.

    Raises:
        ValueError: it is not installed.
    """
    try:
        import faiss as module
    except ImportError:
        raise ValueError(
            "--index ivfpq needs faiss, which is not installed: pip install faiss-cpu, or "
            "pip install 'clipfast[curate]'; --index exact compares each picture with each"
        ) from None
    return module


@dataclass(frozen=True)
class ApproximatePairs:
    """Pairs of the vectors of a range with others.

    Attributes:
        vectors: of all pictures.
        threshold: the lowest one.
        index: path of its file.
        index_digest: of how it was made.
        margin: how much less than the similarity an index may say.
        probes: lists that a search visits.
    """

    vectors: Vectors
    threshold: float
    index: str
    index_digest: str
    margin: float
    probes: int
    name: ClassVar[str] = "pairs"

    def options(self) -> dict[str, Any]:
        """See ``Step``."""
        return {
            "version": 1,
            "vectors": self.vectors.digest,
            "threshold": self.threshold,
            "index": self.index_digest,
            "probes": self.probes,
        }

    def table(self, item: Rows) -> Any:
        """See ``clipfast.curate.near.pairs.Collected``. Each side of a pair looks for the other: a
        pair may stand in two tables."""
        faiss().omp_set_num_threads(1)
        index = _opened(self.index)
        index.nprobe = min(self.probes, index.nlist)
        found = Collected(self.vectors, self.threshold)
        for start in range(item.start, item.stop, _QUERIES):
            stop = min(start + _QUERIES, item.stop)
            sides = [self.vectors.vectors]
            if self.vectors.mirrored:
                sides.append(self.vectors.flipped)
            looks = [look for side in sides for look in split(side, self.vectors.looks)]
            near = [self._near(index, look, start, stop) for look in looks]
            pairs = np.unique(np.concatenate(near), axis=0)
            found.add(pairs[:, 0], pairs[:, 1])
        return found.table()

    def _near(self, index: Any, look: np.ndarray, start: int, stop: int) -> np.ndarray:
        """``[P, 2]``: candidates, the smaller number first. The index holds all looks."""
        queries = np.ascontiguousarray(look[start:stop], np.float32)
        limits, _, labels = index.range_search(queries, self.threshold - self.margin - _BELOW)
        rows = np.repeat(np.arange(start, stop), np.diff(limits.astype(np.int64)))
        numbers = labels.astype(np.int64) % self.vectors.distinct
        pairs = np.sort(np.stack([rows, numbers], 1), axis=1)
        return pairs[pairs[:, 0] < pairs[:, 1]]


def build(vectors: Vectors, lists: int | None = None) -> tuple[str, str, float]:
    """Make the index, where it is not there yet.

    Takes D / 4 + 8 bytes of memory per vector of a look, and what it learns from.

    Args:
        vectors: of all pictures, at least 10,240.
        lists: of the inverted file; None: about 4 sqrt(M), with 40 vectors each at least.

    Returns:
        Path of its file, digest of how it was made, and the margin: of 200 vectors 199 lose less
        similarity to themselves by their code.

    Raises:
        ValueError: there are too few vectors, or faiss is not installed.
    """
    module = faiss()
    if vectors.distinct < _FEWEST:
        raise ValueError(
            f"--index ivfpq learns from at least {_FEWEST:,} different vectors, and there are "
            f"{vectors.distinct:,}: leave --index out"
        )
    lists = lists or min(int(4 * math.sqrt(vectors.distinct)), vectors.distinct // 40)
    codes = _codes(vectors.width // vectors.looks)
    name = f"ivf{lists}-pq{codes}"
    path = Path(vectors.folder, f"{name}.faiss")
    about = Path(vectors.folder, f"{name}.json")
    if not about.exists():
        index, sample = _learnt(module, vectors, lists, codes)
        for look in split(vectors.vectors, vectors.looks):
            for start in range(0, vectors.distinct, 1 << 16):
                index.add(look[start : start + (1 << 16)].astype(np.float32))
        with whole_file(path) as temporary:
            module.write_index(index, str(temporary))
        coded = index.sa_decode(index.sa_encode(sample))
        lost = np.sort(1 - (coded * sample).sum(1))
        margin = max(0.0, float(lost[-1 - len(lost) // _LOST]))
        write_whole(about, json.dumps({"margin": margin}).encode())
    return str(path), name, json.loads(about.read_text())["margin"]


def _codes(width: int) -> int:
    """Bytes of a code: a divisor of D near D / 4."""
    divisors = [n for n in range(1, width + 1) if width % n == 0]
    return min(divisors, key=lambda n: abs(n - width / _PER_CODE))


def _learnt(module: Any, vectors: Vectors, lists: int, codes: int) -> tuple[Any, np.ndarray]:
    """An empty index, and what it has learnt from."""
    many = min(vectors.distinct, max(_FEWEST, _PER_LIST * lists))
    rows = np.sort(np.random.default_rng(0).choice(vectors.distinct, many, replace=False))
    sample = np.concatenate(split(vectors.vectors[rows].astype(np.float32), vectors.looks))
    # "np": without polysemous training, which takes a minute and changes no inner product.
    kind = f"IVF{lists},PQ{codes}np"
    index = module.index_factory(sample.shape[1], kind, module.METRIC_INNER_PRODUCT)
    index.train(sample)
    return index, sample


@functools.lru_cache(1)
def _opened(path: str) -> Any:
    """An index whose lists are mapped: workers of a machine share them."""
    module = faiss()
    return module.read_index(path, module.IO_FLAG_MMAP)
