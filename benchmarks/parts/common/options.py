"""The part of the command line that benchmarks have in common."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

Defaults = Mapping[str, Mapping[str, Any]]


def new_parser(doc: str, defaults: Defaults) -> argparse.ArgumentParser:
    """A parser that shows the first line of a script's docstring and its defaults."""
    return argparse.ArgumentParser(
        description=doc.splitlines()[0],
        epilog="without options: " + "; ".join(f"{k}: {v}" for k, v in defaults.items()),
    )


def add_run_options(
    parser: argparse.ArgumentParser, defaults: Defaults, *, save: str | None = None
) -> None:
    """Add ``--runs``, ``--device``, ``--json``, ``--plot``, and ``--save`` with a help text."""
    parser.add_argument("--runs", type=int, help="timed runs of each contender")
    parser.add_argument("--device", choices=defaults, help="CUDA where there is one, else the CPU")
    if save:
        parser.add_argument("--save", action="store_true", help=save)
    parser.add_argument("--json", type=Path, help="file for the rows, one per line")
    parser.add_argument("--plot", type=Path, help="file for the plot")


def parse(
    parser: argparse.ArgumentParser, argv: Sequence[str] | None, defaults: Defaults
) -> argparse.Namespace:
    """The options, with this machine's defaults in place of what was not given.

    Args:
        parser: Of :func:`new_parser`.
        argv: The command line, ``sys.argv`` if None.
        defaults: By device type, then by option.

    Returns:
        The options. ``is_default`` says whether none was given.
    """
    arguments = parser.parse_args(argv)
    is_default = vars(arguments) == vars(parser.parse_args([]))
    has_cuda = "cuda" in defaults and torch.cuda.is_available()
    device = arguments.device or ("cuda" if has_cuda else "cpu")
    given = {name: value for name, value in vars(arguments).items() if value is not None}
    return argparse.Namespace(
        **{
            **dict.fromkeys(vars(arguments)),
            **defaults[device],
            **given,
            "device": device,
            "is_default": is_default,
        }
    )
