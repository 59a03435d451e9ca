"""``geolocate``: where images were taken, by their nearest neighbours."""

from __future__ import annotations

import argparse
from typing import Any

from clipfast.eval.commands.options import (
    add_model_options,
    add_output_options,
    begin,
    encoder_of,
    require_same,
)
from clipfast.eval.geolocation.locate import TASK, geolocate
from clipfast.eval.geolocation.places import open_places

SHARES_WORK = True


def add(subparsers: Any) -> None:
    """Add the subcommand.

    Args:
        subparsers: of the command line.
    """
    text = "guess where images were taken by the most similar ones whose place is known"
    parser = subparsers.add_parser("geolocate", help=text, description=text)
    add_model_options(parser)
    group = parser.add_argument_group("data")
    group.add_argument(
        "--data",
        required=True,
        help="table of images with the columns path, latitude and longitude",
    )
    group.add_argument("--references", required=True, help="the same of images to compare with")
    group.add_argument("--split", default="test", help="of --data, where it has a column of splits")
    group.add_argument("--reference-split", default="train", help="the same of --references")
    group.add_argument("--root", help="folder that the paths of --data start from")
    group.add_argument("--reference-root", help="the same of --references")
    add_output_options(parser)


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Compare, print a table, and write the result.

    Args:
        options: as parsed.

    Returns:
        What the file of the result holds.

    Raises:
        ValueError: data or weights cannot be read or do not fit.
        OSError: the result cannot be written.
    """
    queries = open_places(options.data, split=options.split, root=options.root)
    references = open_places(
        options.references, split=options.reference_split, root=options.reference_root
    )
    file, loaded, existing = begin(options, queries.name, TASK)
    if loaded is None:
        differing = {"--references": existing.get("references") != references.name}
        require_same(file.path, differing)
        return existing
    encoder = encoder_of(options, loaded)
    found = geolocate(encoder, references, queries)
    more = {**found.as_json(), "resize": options.resize}
    if encoder.sharing.rank:
        return {"metrics": found.metrics, **more}
    written = file.write(found.metrics, more)
    print(*found.lines, f"written: {file.path}", sep="\n")
    return written
