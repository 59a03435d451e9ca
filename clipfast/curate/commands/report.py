"""``report``: a page of what a selection does to queries."""

from __future__ import annotations

import argparse
from typing import Any

from clipfast.curate.commands.options import path_of
from clipfast.curate.report.numbers import count
from clipfast.curate.report.page import page
from clipfast.curate.text.matchfolder import read_match_folder
from clipfast.data.selection import read_selection
from clipfast.storage import storage_of


def add(subparsers: Any) -> None:
    """Add the subcommand.

    Args:
        subparsers: of the command line.
    """
    text = "make a page of queries before and after a selection"
    parser = subparsers.add_parser("report", help=text, description=text)
    parser.add_argument("matches", help="folder that match has written")
    parser.add_argument("--select", required=True, help="file of the selection")
    parser.add_argument("--out", required=True, help="file of the page, .html")


def run(options: argparse.Namespace) -> None:
    """Write the page.

    Args:
        options: as parsed.

    Raises:
        ValueError: matches and selection are of different indexes.
        OSError: a file cannot be read or written.
    """
    selection = read_selection(path_of(options.select))
    numbers = count(read_match_folder(path_of(options.matches)), selection)
    out = path_of(options.out)
    html = page(numbers, selection.name, selection.made).encode("utf-8", "replace")
    storage_of(out).write_atomic(out, html)
    print(f"{out}: {len(numbers.shards):,} shards, {len(numbers.texts):,} queries")
