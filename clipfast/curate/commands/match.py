"""``match``: which captions hold which queries."""

from __future__ import annotations

import argparse
import time
from typing import Any

from clipfast.curate.commands.options import add_engine_options, add_shards, path_of, shards_given
from clipfast.curate.engine import run as run_step
from clipfast.curate.text.match import Match, totals
from clipfast.curate.text.matchfolder import write_match_folder
from clipfast.curate.text.queryfile import read_queries, write_queries
from clipfast.curate.text.words import RULES
from clipfast.storage import storage_of
from clipfast.storage.paths import join


def add(subparsers: Any) -> None:
    """Add the subcommand.

    Args:
        subparsers: of the command line.
    """
    text = "find which captions of shards hold which queries"
    parser = subparsers.add_parser("match", help=text, description=text)
    add_shards(parser)
    parser.add_argument("--queries", required=True, help="file of queries, one a line, or .json")
    parser.add_argument("--out", required=True, help="folder of the matches")
    parser.add_argument("--words", choices=RULES, default=RULES[0], help="what words are")
    add_engine_options(parser)


def run(options: argparse.Namespace) -> None:
    """Write what is not there yet.

    Args:
        options: as parsed.

    Raises:
        ValueError: queries or shards cannot be read.
        OSError: a file cannot be read or written.
    """
    began = time.perf_counter()
    out = path_of(options.out)
    listed = read_queries(path_of(options.queries), options.words)
    shards = shards_given(options)
    # A copy of its own: the matches are numbers of its lines.
    storage_of(out).make_folder(out)
    copy = join(out, f"queries-{listed.digest}.tsv")
    write_queries(copy, listed.queries)
    step = Match(copy, listed.digest, options.words)
    paths = run_step(step, shards, out, options.engine, options.workers)
    write_match_folder(out, step, shards, paths)
    found = totals(paths, len(listed.queries))
    samples = sum(shard.samples for shard in shards)
    left_out = f" ({listed.left_out:,} more have the words of another)" if listed.left_out else ""
    print(
        f"{len(shards):,} shards, {samples:,} pairs, {len(listed.queries):,} queries{left_out}: "
        f"{found.pairs:,} pairs ({found.pairs / max(1, samples):.1%}) hold {found.matches:,} "
        f"queries, {int((found.counts > 0).sum()):,} different ones "
        f"({time.perf_counter() - began:.1f} s)"
    )
