"""``embed``: features of whole shards on disk."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

from clipfast.eval.commands.options import add_model_options, encoder_of, loaded_model
from clipfast.eval.embedding import embed

SHARES_WORK = True


def add(subparsers: Any) -> None:
    """Add the subcommand.

    Args:
        subparsers: of the command line.
    """
    text = "write the features of all images and captions of shards"
    parser = subparsers.add_parser("embed", help=text, description=text)
    parser.add_argument("shards", nargs="+", help="patterns, as --data.train takes them")
    parser.add_argument("--out", type=Path, required=True, help="folder of the features")
    add_model_options(parser)


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Write what is not there yet.

    Args:
        options: as parsed.

    Returns:
        What was done.

    Raises:
        ValueError: data or weights cannot be read or do not fit.
        OSError: a file cannot be written.
    """
    encoder = encoder_of(options, loaded_model(options))
    began = time.perf_counter()
    done = embed(encoder, options.shards, options.out)
    seconds = time.perf_counter() - began
    if encoder.sharing.rank == 0:
        print(
            f"{done.parts} shards in {options.out}, {done.before} of them before; {done.pairs:,} "
            f"pairs in {seconds:.1f} s, {done.pairs / seconds:.0f} pairs/s"
        )
        if done.unreadable:
            print(f"{done.unreadable} image(s) do not decode: NaN, see the column 'error'")
    return {"parts": done.parts, "before": done.before, "pairs": done.pairs}
