"""``exact``: samples that are there twice."""

from __future__ import annotations

import argparse
import time
from typing import Any

import numpy as np

from clipfast.curate.commands.options import add_engine_options, add_shards, path_of, shards_given
from clipfast.curate.engine import read_table, write_table
from clipfast.curate.engine import run as run_step
from clipfast.curate.engine.parts import arrow, digest
from clipfast.curate.exact.digests import KINDS, Digests
from clipfast.curate.exact.repeats import Repeats, left_out, ranges
from clipfast.data.selection import choose, write_selection
from clipfast.storage.paths import join


def add(subparsers: Any) -> None:
    """Add the subcommand.

    Args:
        subparsers: of the command line.
    """
    text = "select one of each group of equal samples"
    parser = subparsers.add_parser("exact", help=text, description=text)
    add_shards(parser)
    parser.add_argument("--out", required=True, help="file of the selection")
    parser.add_argument(
        "--by",
        choices=tuple(KINDS),
        default="pair",
        help="what is equal: pixels and caption (the default), pixels, or bytes of the image file",
    )
    add_engine_options(parser)


def run(options: argparse.Namespace) -> None:
    """Write the selection.

    Args:
        options: as parsed.

    Raises:
        ValueError: shards cannot be read.
        OSError: a file cannot be read or written.
    """
    began = time.perf_counter()
    out = path_of(options.out)
    folder = f"{out}.parts"
    shards = shards_given(options)
    work = options.engine, options.workers
    paths = run_step(Digests(options.by), shards, folder, *work)
    known = digest([options.by, *(shard.part for shard in shards)])
    listing = join(folder, f"shards-{known}.parquet")
    write_table(listing, arrow().table({"path": paths}))
    samples = sum(shard.samples for shard in shards)
    found = run_step(Repeats(listing, known), ranges(samples), folder, *work)
    tables = [read_table(path) for path in found]
    choices = []
    for shard, rows in zip(shards, left_out(tables, len(shards)), strict=True):
        stays = np.setdiff1d(np.arange(shard.samples), rows)
        choices.append(choose(shard.name, shard.samples, shard.mark, stays))
    made = {"command": "exact", "by": options.by, "repeats": samples - sum(c.kept for c in choices)}
    write_selection(out, choices, made)
    unread = sum(read_table(path)["high"].null_count for path in paths)
    firsts = {pair for table in tables for pair in zip(*_first(table), strict=True)}
    print(
        f"{samples:,} samples of {len(shards):,} shards: {made['repeats']:,} repeat one of "
        f"{len(firsts):,} others by {options.by}; the rest stays in {out} "
        f"({time.perf_counter() - began:.1f} s)"
    )
    if unread:
        print(f"{unread:,} images do not decode and are compared with nothing: they stay")


def _first(table: Any) -> tuple[list[int], list[int]]:
    return table["first_shard"].to_pylist(), table["first_row"].to_pylist()
