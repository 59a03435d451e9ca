"""``near``: pictures that are nearly the same."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from clipfast.curate.commands.options import (
    add_detector_options,
    add_engine_options,
    add_shards,
    path_of,
    shards_given,
    thresholds,
    whole,
)
from clipfast.curate.engine import write_table
from clipfast.curate.engine.parts import arrow
from clipfast.curate.near.chosen import choose_detector
from clipfast.curate.near.find import INDEXES, Work, embed, find_pairs
from clipfast.curate.near.findings import AtThreshold
from clipfast.curate.near.groups import KEEPS, Pairs, connect, thin
from clipfast.curate.near.page import NearPage
from clipfast.curate.near.vectors import Vectors, gather
from clipfast.curate.select.combine import kept_rows
from clipfast.curate.select.within import within
from clipfast.curate.shards import Shard
from clipfast.data.selection import ShardChoice, choose, write_selection
from clipfast.storage import storage_of


def add(subparsers: Any) -> None:
    """Add the subcommand.

    Args:
        subparsers: of the command line.
    """
    text = "select one of each group of pictures that are nearly the same"
    parser = subparsers.add_parser("near", help=text, description=text)
    add_shards(parser)
    add_detector_options(parser)
    parser.add_argument(
        "--threshold",
        type=thresholds,
        required=True,
        metavar="T[,T...]",
        help="similarity from which two are the same; the first makes the selection",
    )
    parser.add_argument("--out", required=True, help="file of the selection")
    parser.add_argument("--report", help="file of a page with pairs as pictures, .html")
    parser.add_argument("--pairs", help="file of the pairs (OUT.pairs.parquet)")
    parser.add_argument(
        "--keep", choices=KEEPS, default=KEEPS[0], help="which one of a group stays"
    )
    parser.add_argument(
        "--max-group",
        type=whole(1),
        default=1000,
        help="pictures of a group; a larger one is a chain, and is thinned pair by pair (1000)",
    )
    parser.add_argument("--index", choices=INDEXES, default=INDEXES[0], help="how pairs are found")
    parser.add_argument(
        "--probes", type=whole(1), default=32, help="lists that a search of ivfpq visits (32)"
    )
    parser.add_argument("--select", help="look at samples of this selection alone")
    parser.add_argument("--scratch", help="local folder of the vectors (OUT.parts)")
    add_engine_options(parser)


def run(options: argparse.Namespace) -> None:
    """Write the selection, the pairs and the page.

    Args:
        options: as parsed.

    Raises:
        ValueError: shards or the detector cannot be read.
        OSError: a file cannot be read or written.
    """
    began = time.perf_counter()
    out = path_of(options.out)
    shards = shards_given(options)
    detector = choose_detector(options.detector, options.device)
    chosen = within(path_of(options.select) if options.select else None)
    scratch = path_of(options.scratch) if options.scratch else None
    work = Work(f"{out}.parts", options.engine, options.workers, scratch)
    paths = embed(work, shards, detector, options.flips == "same", chosen, options.threads)
    vectors = gather(work.local, paths, detector.looks)
    lowest = min(options.threshold)
    pairs = find_pairs(work, vectors, lowest, options.index, options.probes)
    worth = _worth(vectors, options.keep)
    found = [
        _at(pairs, threshold, vectors.number, worth, options.max_group)
        for threshold in options.threshold
    ]
    kept = [kept_rows(chosen.selection(), s.path, s.samples, s.mark) for s in shards]
    choices = _choices(shards, kept, vectors, found[0].goes)
    made = {
        "command": "near",
        "detector": options.detector,
        "threshold": options.threshold[0],
        "keep": options.keep,
        "flips": options.flips,
    }
    write_selection(out, choices, made)
    _write_pairs(options.pairs or f"{out}.pairs.parquet", shards, vectors, pairs.at_least(lowest))
    unread = sum(int(rows.sum()) for rows in kept) - len(vectors.number)
    for each in found:
        print(_line(each))
    samples = sum(choice.kept for choice in choices)
    print(f"{samples:,} samples stay in {out} ({time.perf_counter() - began:.1f} s)")
    if unread:
        print(f"{unread:,} images do not decode and are compared with nothing: they stay")
    if options.report:
        page = NearPage(shards, vectors, pairs, found, options.detector, unread)
        report = path_of(options.report)
        storage_of(report).write_atomic(report, page.html().encode("utf-8", "replace"))
        print(f"pairs as pictures: {report}")


def _worth(vectors: Vectors, keep: str) -> np.ndarray:
    if keep == "first":
        return np.zeros(len(vectors.number), np.int64)
    return np.asarray(vectors.column("pixels" if keep == "largest" else "letters"))


def _at(
    pairs: Pairs, threshold: float, number: np.ndarray, worth: np.ndarray, most: int
) -> AtThreshold:
    groups = connect(pairs.at_least(threshold), len(number))
    return AtThreshold(threshold, groups, *thin(groups, number, worth, most))


def _line(found: AtThreshold) -> str:
    sizes = ", ".join(f"{size:,}" for size in found.groups.largest[:5]) or "none"
    chains = f"; {found.chains:,} are chains" if found.chains else ""
    return (
        f"at {found.threshold:g}: {len(found.groups.pairs):,} pairs, {found.groups.count:,} "
        f"groups (the largest: {sizes}{chains}), {int(found.goes.sum()):,} samples go"
    )


def _choices(
    shards: Sequence[Shard], kept: Sequence[np.ndarray], vectors: Vectors, goes: np.ndarray
) -> list[ShardChoice]:
    shard, row = vectors.column("shard")[goes], vectors.column("row")[goes]
    ends = np.searchsorted(shard, np.arange(len(shards) + 1))
    choices = []
    for place, each in enumerate(shards):
        stays = kept[place].copy()
        stays[row[ends[place] : ends[place + 1]]] = False
        choices.append(choose(each.name, each.samples, each.mark, np.flatnonzero(stays)))
    return choices


def _write_pairs(path: str, shards: Sequence[Shard], vectors: Vectors, pairs: Pairs) -> None:
    """Columns shard, row, other_shard, other_row and similarity."""
    pa = arrow()
    names = pa.array([shard.name for shard in shards], pa.string())
    shard, row = vectors.column("shard"), vectors.column("row")
    columns = {}
    for prefix, places in (("", pairs.first), ("other_", pairs.second)):
        columns[f"{prefix}shard"] = names.take(pa.array(shard[places]))
        columns[f"{prefix}row"] = pa.array(row[places])
    write_table(path_of(path), pa.table({**columns, "similarity": pairs.similarity}))
