"""From evaluation sets and shards to their overlap: the steps, one after the other."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from clipfast.curate.engine import read_table, write_table
from clipfast.curate.engine.parts import arrow, digest
from clipfast.curate.near.chosen import Chosen
from clipfast.curate.near.find import Work, embed
from clipfast.curate.overlap.evalset import EvalEmbeddings, EvalSet, parts
from clipfast.curate.overlap.nearest import Nearest, merge
from clipfast.curate.overlap.result import SetOverlap
from clipfast.curate.shards import Shard, ShardTable
from clipfast.storage.paths import join


def measure(
    work: Work,
    sets: Sequence[EvalSet],
    shards: Sequence[Shard],
    detector: Chosen,
    thresholds: Sequence[float],
    mirrored: bool,
    threads: int | None = None,
) -> list[SetOverlap]:
    """The nearest training picture of each image of each set.

    Args:
        work: where it is done.
        sets: evaluation sets.
        shards: of the training set.
        detector: that says what is alike.
        thresholds: of each set.
        mirrored: whether an evaluation image is compared mirrored, too.
        threads: that decode in each worker.

    Raises:
        ValueError: no picture decodes.
        OSError: a file cannot be read or written.
    """
    items = [part for images in sets for part in parts(images)]
    step = EvalEmbeddings(detector, mirrored, threads or 1)
    # Two sets may hold the same images.
    work.run(step, list({item.part: item for item in items}.values()))
    folder = join(work.folder, f"{step.name}-{digest([step.name, step.options()])}")
    tables = [read_table(join(folder, f"{item.part}.parquet")) for item in items]
    whole = arrow().concat_tables(tables)
    known = np.flatnonzero(whole["vector"].is_valid().to_numpy())
    marks = digest([[item.part for item in items], step.options()])
    queries = join(work.folder, f"queries-{marks}.parquet")
    write_table(queries, whole.take(known))
    vectors = embed(work, shards, detector, mirrored=False, threads=threads)
    pieces = [ShardTable(shard, path) for shard, path in zip(shards, vectors, strict=True)]
    shard, row, similarity = merge(work.run(Nearest(queries, marks, detector.looks), pieces))
    starts = np.cumsum([0, *(images.images for images in sets)])
    found = []
    for place, images in enumerate(sets):
        low, high = np.searchsorted(known, starts[place : place + 2])
        mine = slice(int(low), int(high))
        found.append(
            SetOverlap(
                images,
                thresholds[place],
                known[mine] - starts[place],
                similarity[mine],
                shard[mine],
                row[mine],
            )
        )
    return found
