"""Evaluate a trained model: ``python -m clipfast.eval``."""

import argparse
import importlib
import logging
import sys
from collections.abc import Sequence

from clipfast.data.command import fail
from clipfast.eval.commands import COMMANDS
from clipfast.eval.running import carry_out


def parser() -> argparse.ArgumentParser:
    """The command line with all subcommands."""
    main_parser = argparse.ArgumentParser(prog="python -m clipfast.eval", description=__doc__)
    subparsers = main_parser.add_subparsers(dest="command", required=True)
    for name in COMMANDS:
        importlib.import_module(f"clipfast.eval.commands.{name}").add(subparsers)
    return main_parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a subcommand.

    Args:
        arguments: of the command line; None takes ``sys.argv``.

    Returns:
        0, or 1 with the reason on stderr.
    """
    options = parser().parse_args(arguments)
    logging.basicConfig(format="%(message)s")
    try:
        carry_out(importlib.import_module(f"clipfast.eval.commands.{options.command}"), options)
    except (ValueError, OSError, ImportError) as error:
        return fail(error)
    return 0


if __name__ == "__main__":
    sys.exit(main())
