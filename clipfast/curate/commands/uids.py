"""``uids``: the samples that a file of DataComp names."""

from __future__ import annotations

import argparse
import time
from typing import Any

from clipfast.curate.commands.options import (
    add_engine_options,
    add_shards,
    path_of,
    shards_given,
)
from clipfast.curate.engine import read_table
from clipfast.curate.engine import run as run_step
from clipfast.curate.uids.find import Uids, sources_of
from clipfast.curate.uids.subset import Subset
from clipfast.data.selection import ShardChoice, choose, write_selection
from clipfast.data.sidecar import Sidecar
from clipfast.storage.nearby import nearby


def add(subparsers: Any) -> None:
    """Add the subcommand.

    Args:
        subparsers: of the command line.
    """
    text = "select the samples whose uid is in a file of DataComp"
    parser = subparsers.add_parser("uids", help=text, description=text)
    parser.add_argument("uids", metavar="FILE.npy", help="sorted uids, of numpy's type 'u8,u8'")
    add_shards(parser)
    parser.add_argument("--out", required=True, help="file of the selection")
    parser.add_argument(
        "--uid", default="uid", help="key of the JSON of a sample, or column of a table (uid)"
    )
    parser.add_argument(
        "--uid-files",
        nargs="+",
        default=[],
        help="tables in which uids stand, such as '{shard}.parquet'; without it: JSON in the tars",
    )
    parser.add_argument("--uid-key", default="key", help="column of keys in these tables (key)")
    add_engine_options(parser)


def run(options: argparse.Namespace) -> None:
    """Write the selection.

    Args:
        options: as parsed.

    Raises:
        ValueError: shards or uids cannot be read, or no sample has a uid.
        OSError: a file cannot be read or written.
    """
    began = time.perf_counter()
    given, out = path_of(options.uids), path_of(options.out)
    shards = shards_given(options)
    sidecar = None
    if options.uid_files:
        sidecar = Sidecar(tuple(options.uid_files), options.uid_key, (options.uid,))
    sources = sources_of(shards, sidecar, options.caption_cache)
    work = options.engine, options.workers
    paths = run_step(Uids(options.uid), sources, f"{out}.parts", *work)
    without = 0
    choices: list[ShardChoice] = []
    with nearby(given) as file:
        subset = Subset(str(file), given)
        for shard, path in zip(shards, paths, strict=True):
            table = read_table(path)
            without += table["high"].null_count
            rows = table["high"].is_valid().to_numpy()
            high, low = (table[name].fill_null(0).to_numpy() for name in ("high", "low"))
            rows &= subset.holds(high, low)
            choices.append(choose(shard.name, shard.samples, shard.mark, rows.nonzero()[0]))
        count = len(subset)
    samples = sum(shard.samples for shard in shards)
    if without == samples:
        where = ", ".join(options.uid_files) or "the JSON of the samples"
        raise ValueError(
            f"none of {samples:,} samples has 32 hexadecimal digits under {options.uid!r} in "
            f"{where}: say where uids are by --uid and --uid-files"
        )
    kept = sum(choice.kept for choice in choices)
    write_selection(out, choices, {"command": "uids", "uids": count, "without": without})
    print(
        f"{kept:,} of {samples:,} samples of {len(shards):,} shards are among {count:,} uids: "
        f"{out} ({time.perf_counter() - began:.1f} s)"
    )
    if without:
        print(f"{without:,} samples have no uid and are left out")
