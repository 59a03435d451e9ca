"""Options that several subcommands have, and how a path is taken."""

from __future__ import annotations

import argparse
from typing import Any

from clipfast.curate.shards import Shard, shards_of
from clipfast.data.command import path_of
from clipfast.data.fields import FIELDS
from clipfast.data.sidecar import Sidecar

__all__ = [
    "add_detector_options",
    "add_engine_options",
    "add_shards",
    "path_of",
    "similarity",
    "thresholds",
    "whole",
]


def add_engine_options(parser: Any) -> None:
    """Where the work is done."""
    parser.add_argument(
        "--engine",
        default="pool",
        help="pool: processes of this machine (the default); ray, or ray:ADDRESS of a cluster",
    )
    parser.add_argument("--workers", type=int, help="at a time; all cores where left out")


def add_shards(parser: Any) -> None:
    """Shards, and where their captions are."""
    parser.add_argument("shards", nargs="+", help="patterns, as --data.train takes them")
    parser.add_argument(
        "--captions",
        nargs="+",
        default=list(FIELDS.captions),
        help=f"where they are, as --data.captions says it ({' '.join(FIELDS.captions)})",
    )
    add_caption_files(parser)


def add_detector_options(parser: Any) -> None:
    """What says how alike two pictures are, and where it computes."""
    parser.add_argument(
        "--detector",
        required=True,
        help="hash, clip:FILE of weights, or the folder of a detector that was trained",
    )
    parser.add_argument(
        "--flips",
        choices=("other", "same"),
        default="other",
        help="what a mirrored picture is: another one (the default), or the same",
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: a GPU where one is")
    parser.add_argument("--threads", type=whole(1), help="that decode, in each worker")


def similarity(text: str) -> float:
    """A type of argparse: a similarity, above -1 and at most 1."""
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected a similarity, got {text!r}") from None
    if not -1 < value <= 1:
        raise argparse.ArgumentTypeError(f"must be above -1 and at most 1, got {text}")
    return value


def thresholds(text: str) -> list[float]:
    """A type of argparse: one similarity or several, with commas between them."""
    return list(dict.fromkeys(similarity(part) for part in text.split(",")))


def add_caption_files(parser: Any) -> None:
    """Tables in which captions stand."""
    usual = Sidecar(("{shard}.parquet",))
    parser.add_argument(
        "--caption-files",
        nargs="+",
        default=[],
        help="Parquet or CSV tables of captions, as --data.caption-files takes them",
    )
    parser.add_argument("--caption-key", default=usual.key, help="their column of keys (key)")
    parser.add_argument(
        "--caption-columns",
        nargs="+",
        default=list(usual.captions),
        help="their columns of captions (caption)",
    )
    parser.add_argument("--caption-shard", default=usual.shard, help="column of shards (shard)")
    parser.add_argument(
        "--caption-missing",
        choices=("leave-out", "own"),
        default=usual.missing,
        help="samples without a row have no caption (leave-out), or their own",
    )
    parser.add_argument("--caption-cache", default="", help="see --data.caption-cache")


def shards_given(options: argparse.Namespace) -> list[Shard]:
    """The shards of ``add_shards``, with their captions.

    Args:
        options: as parsed.

    Raises:
        ValueError, OSError: see ``clipfast.curate.shards.shards_of``.
    """
    sidecar = None
    if options.caption_files:
        sidecar = Sidecar(
            tuple(options.caption_files),
            options.caption_key,
            tuple(options.caption_columns),
            options.caption_shard,
            options.caption_missing,
        )
    return shards_of(options.shards, options.captions, sidecar, options.caption_cache)


def whole(least: int) -> Any:
    """A type of argparse: a whole number of at least so much."""

    def read(text: str) -> int:
        try:
            number = int(text.replace("_", "").replace(",", ""))
        except ValueError:
            raise argparse.ArgumentTypeError(f"expected a whole number, got {text!r}") from None
        if number < least:
            raise argparse.ArgumentTypeError(f"must be at least {least}, got {number}")
        return number

    return read
