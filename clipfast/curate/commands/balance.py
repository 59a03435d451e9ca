"""``balance``: at most so many pairs a query."""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np

from clipfast.curate.balance.draw import RULES
from clipfast.curate.balance.step import Balance, query_counts
from clipfast.curate.balance.summary import summary
from clipfast.curate.commands.options import add_engine_options, path_of, whole
from clipfast.curate.engine import read_table, write_table
from clipfast.curate.engine import run as run_step
from clipfast.curate.engine.parts import arrow, digest
from clipfast.curate.select.bits import choices_of
from clipfast.curate.select.within import within
from clipfast.curate.text.matchfolder import read_match_folder
from clipfast.data.selection import Selection, write_selection
from clipfast.storage.paths import join


def add(subparsers: Any) -> None:
    """Add the subcommand.

    Args:
        subparsers: of the command line.
    """
    text = "keep at most so many pairs per query, by one seeded draw per pair"
    parser = subparsers.add_parser("balance", help=text, description=text)
    parser.add_argument("matches", help="folder that match has written")
    parser.add_argument("--out", required=True, help="file of the selection")
    parser.add_argument("--at-most", type=whole(1), default=20_000, help="pairs a query (20000)")
    parser.add_argument("--seed", type=int, default=0, help="of the draws (0)")
    parser.add_argument("--rule", choices=RULES, default=RULES[0], help="of a pair's chance")
    parser.add_argument("--select", help="take pairs of this selection alone, and count them alone")
    parser.add_argument(
        "--weights",
        action="store_true",
        help="keep all that have a chance, with it as their weight: each epoch has others",
    )
    parser.add_argument(
        "--captions",
        choices=("all", "matched"),
        default="all",
        help="of a pair's captions draw from all (the default), or take the first with a query",
    )
    add_engine_options(parser)


def run(options: argparse.Namespace) -> None:
    """Write the selection.

    Args:
        options: as parsed.

    Raises:
        ValueError: matches or shards are not what they were.
        OSError: a file cannot be read or written.
    """
    folder = read_match_folder(path_of(options.matches))
    taken = within(path_of(options.select) if options.select else None)
    before = query_counts(folder, taken.selection())
    known = digest(before.tolist())
    counts = join(folder.folder, f"counts-{known}.parquet")
    write_table(counts, arrow().table({"count": before}))
    step = Balance(
        folder.step,
        counts,
        known,
        options.at_most,
        options.seed,
        options.rule,
        taken,
        options.weights,
        options.captions == "matched",
    )
    paths = run_step(step, folder.matched, folder.folder, options.engine, options.workers)
    choices = choices_of([read_table(path) for path in paths])
    out = path_of(options.out)
    made = {"command": "balance", **step.options()}
    write_selection(out, choices, made)
    result = Selection(choices, out)
    samples = sum(choice.samples for choice in choices)
    share = result.kept / max(1, samples)
    print(f"{result.kept:,} of {samples:,} pairs ({share:.1%}) in {out}")
    if options.weights:
        epoch = sum(w.sum() if (w := c.weighted()) is not None else c.kept for c in choices)
        print(f"an epoch has {int(np.ceil(epoch)):,} of them, by their weights")
    texts = [query.text for query in folder.queries.queries]
    for line in summary(texts, before, query_counts(folder, result), options.at_most):
        print(line)
