"""Evaluate a trained model: ``python -m clipfast.eval``."""

import argparse
import importlib
import logging
import sys
from collections.abc import Sequence

from clipfast.data.command import fail, parser_of
from clipfast.eval.commands import COMMANDS
from clipfast.eval.running import carry_out


def parser() -> argparse.ArgumentParser:
    """The command line with all subcommands."""
    return parser_of("clipfast.eval", __doc__, COMMANDS)


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
