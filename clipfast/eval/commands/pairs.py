"""``pairs``: a labelled set as shards to train on."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from clipfast.eval.commands.options import add_set_options, set_of
from clipfast.eval.sets.pairs import write_pairs


def add(subparsers: Any) -> None:
    """Add the subcommand.

    Args:
        subparsers: of the command line.
    """
    text = (
        "write a labelled set as pairs to train on: images beside their classes' names in prompts"
    )
    parser = subparsers.add_parser("pairs", help=text, description=text)
    add_set_options(parser)
    parser.set_defaults(split="train")
    parser.add_argument("--out", type=Path, required=True, help="folder of the shards")
    parser.add_argument("--seed", type=int, default=0, help="of the draw of prompts")
    parser.add_argument("--shard-size", type=int, default=5000, help="pairs in a shard")


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Write the shards, and say how to train on them.

    Args:
        options: as parsed.

    Returns:
        Numbers of pairs and shards.

    Raises:
        ValueError: the set cannot be read, or has no captions.
        OSError: a shard cannot be written.
    """
    images = set_of(options)
    shards = write_pairs(images, options.out, seed=options.seed, shard_size=options.shard_size)
    print(f"{len(images):,} pairs in {shards} shards: --data.train '{options.out}/*.tar'")
    return {"pairs": len(images), "shards": shards}
