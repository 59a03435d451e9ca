"""``retrieval``: images by their captions, and captions by their images."""

from __future__ import annotations

import argparse
from typing import Any

from clipfast.eval.captioned import PREFIX, TASK, retrieve, table
from clipfast.eval.commands.options import (
    add_model_options,
    add_output_options,
    begin,
    encoder_of,
)
from clipfast.eval.sets import open_captions

SHARES_WORK = True


def add(subparsers: Any) -> None:
    """Add the subcommand.

    Args:
        subparsers: of the command line.
    """
    text = "find images by their captions, and captions by their images"
    parser = subparsers.add_parser("retrieval", help=text, description=text)
    add_model_options(parser)
    group = parser.add_argument_group("data")
    group.add_argument(
        "--data",
        required=True,
        help="a table, Karpathy's or COCO's JSON, a folder with one of them, shards, or NAME:PATH",
    )
    group.add_argument("--split", default="test")
    group.add_argument("--root", help="folder that image paths start from")
    group.add_argument(
        "--captions",
        nargs="+",
        default=(),
        help="of shards, where captions are, as --data.captions; default .txt, a caption a line",
    )
    group.add_argument(
        "--prefix", default=PREFIX, help=f"before each caption, for a second row ({PREFIX!r})"
    )
    add_output_options(parser)


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Rank, print a table, and write the result.

    Args:
        options: as parsed.

    Returns:
        What the file of the result holds.

    Raises:
        ValueError: data or weights cannot be read or do not fit.
        OSError: the result cannot be written.
    """
    captioned = open_captions(
        options.data, split=options.split, root=options.root, captions=options.captions
    )
    file, loaded, existing = begin(options, captioned.name, TASK)
    if loaded is None:
        return existing
    encoder = encoder_of(options, loaded)
    found = retrieve(encoder, captioned, options.prefix)
    more = {**found.as_json(), "resize": options.resize}
    if encoder.sharing.rank:
        return {"metrics": dict(found.main.metrics), **more}
    written = file.write(found.main.metrics, more)
    print(*table(found), sep="\n")
    print(f"written: {file.path}")
    return written
