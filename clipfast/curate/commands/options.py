"""Options that several subcommands have, and how a path is taken."""

from __future__ import annotations

import argparse
from typing import Any

from clipfast.data.command import path_of

__all__ = ["add_engine_options", "path_of", "whole"]


def add_engine_options(parser: Any) -> None:
    """Where the work is done."""
    parser.add_argument(
        "--engine",
        default="pool",
        help="pool: processes of this machine (the default); ray, or ray:ADDRESS of a cluster",
    )
    parser.add_argument("--workers", type=int, help="at a time; all cores where left out")


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
