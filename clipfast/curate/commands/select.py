"""``select``: selections put together."""

from __future__ import annotations

import argparse
from typing import Any

from clipfast.curate.commands.options import path_of
from clipfast.curate.select.combine import combine
from clipfast.data.selection import Selection, read_selection, write_selection


def add(subparsers: Any) -> None:
    """Add the subcommand.

    Args:
        subparsers: of the command line.
    """
    text = "put selections together: what all of them keep, without what others keep"
    parser = subparsers.add_parser("select", help=text, description=text)
    parser.add_argument("selections", nargs="+", help="files of selections")
    parser.add_argument("--out", required=True, help="file of the selection")
    parser.add_argument("--any", action="store_true", help="what one of them keeps is enough")
    parser.add_argument("--without", nargs="+", default=[], help="selections to take out")


def run(options: argparse.Namespace) -> None:
    """Write the selection.

    Args:
        options: as parsed.

    Raises:
        ValueError: a file is no selection, or two are of different indexes.
        OSError: a file cannot be read or written.
    """
    given = [read_selection(path_of(path)) for path in options.selections]
    without = [read_selection(path_of(path)) for path in options.without]
    choices = combine(given, without, any_of=options.any)
    out = path_of(options.out)
    made = {
        "command": "select",
        "any" if options.any else "all": [selection.digest for selection in given],
        "without": [selection.digest for selection in without],
    }
    write_selection(out, choices, made)
    kept = Selection(choices, out).kept
    for selection in given:
        print(f"{selection.kept:,} pairs in {selection.name}")
    for selection in without:
        print(f"without {selection.kept:,} pairs in {selection.name}")
    samples = sum(choice.samples for choice in choices)
    print(f"{kept:,} of {samples:,} pairs of {len(choices):,} shards in {out}")
