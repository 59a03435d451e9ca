"""From shards to pairs of near duplicates: the steps, one after the other."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from clipfast.curate.engine import read_table
from clipfast.curate.engine import run as run_step
from clipfast.curate.near.chosen import Chosen
from clipfast.curate.near.embeddings import Embeddings
from clipfast.curate.near.exact import ExactPairs
from clipfast.curate.near.groups import Pairs, join_tables
from clipfast.curate.near.ivfpq import ApproximatePairs, build
from clipfast.curate.near.pairs import row_ranges
from clipfast.curate.near.vectors import Vectors
from clipfast.curate.select.within import EVERYTHING, Within
from clipfast.curate.shards import Shard
from clipfast.storage.paths import scheme_of

INDEXES = ("auto", "exact", "ivfpq")
# Up to here each vector is compared with each: 5 TFLOP at a width of 128.
EXACT_UP_TO = 200_000


@dataclass(frozen=True)
class Work:
    """Where work is done, and what it leaves.

    Attributes:
        folder: of the partial results.
        engine: "pool", "ray" or "ray:ADDRESS".
        workers: at a time; None: all cores, or one per GPU.
        scratch: folder of the vectors, a local one that all workers see; None: `folder`.
    """

    folder: str
    engine: str = "pool"
    workers: int | None = None
    scratch: str | None = None

    def run(self, step: Any, items: Sequence[Any]) -> list[str]:
        """See ``clipfast.curate.engine.run``."""
        return run_step(step, items, self.folder, self.engine, self.workers)

    @property
    def local(self) -> str:
        """The folder of the vectors.

        Raises:
            ValueError: there is none.
        """
        folder = self.scratch or self.folder
        if scheme_of(folder) != "file":
            raise ValueError(
                f"vectors are mapped into memory, which {folder} does not allow: give --scratch "
                "FOLDER, on a disk that all workers see"
            )
        return folder


def embed(
    work: Work,
    shards: Sequence[Shard],
    detector: Chosen,
    mirrored: bool,
    within: Within = EVERYTHING,
    threads: int | None = None,
) -> list[str]:
    """Paths of the tables of vectors of shards, in the order of their names.

    Args:
        work: where it is done.
        shards: in the order of their names.
        detector: that makes vectors.
        mirrored: whether mirrored pictures get vectors too.
        within: samples that are looked at.
        threads: that decode in each worker; None: one, and all of a GPU's share of the cores.
    """
    workers, share = work.workers, 1
    if detector.device == "cuda":
        workers = workers or torch.cuda.device_count()
        share = max(1, len(os.sched_getaffinity(0)) // workers)
    step = Embeddings(detector, mirrored, within, threads or share)
    return run_step(step, shards, work.folder, work.engine, workers)


def find_pairs(
    work: Work, vectors: Vectors, threshold: float, index: str = "auto", probes: int = 32
) -> Pairs:
    """All pairs of pictures at or above a threshold, and some below.

    Args:
        work: where it is done.
        vectors: of the pictures.
        threshold: the lowest one that matters.
        index: "exact", "ivfpq" or "auto", which is exact up to 200,000 vectors that differ.
        probes: lists of the IVF-PQ that a search visits.

    Raises:
        ValueError: there are too many pairs, or too few vectors for an index.
    """
    step: ExactPairs | ApproximatePairs
    if index == "ivfpq" or (index == "auto" and vectors.distinct > EXACT_UP_TO):
        path, known, margin = build(vectors)
        step = ApproximatePairs(vectors, threshold, path, known, margin, probes)
    else:
        step = ExactPairs(vectors, threshold)
    paths = work.run(step, row_ranges(vectors.distinct))
    return join_tables([read_table(path) for path in paths], vectors.number)
