"""Choose what a model is trained on."""

import argparse
import importlib
from collections.abc import Sequence

from clipfast.curate.commands import COMMANDS
from clipfast.data.command import fail, parser_of


def parser() -> argparse.ArgumentParser:
    """The command line with all subcommands."""
    return parser_of("clipfast.curate", __doc__, COMMANDS)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a subcommand.

    Args:
        arguments: of the command line; None takes ``sys.argv``.

    Returns:
        0, or 1 with the reason on stderr.
    """
    options = parser().parse_args(arguments)
    try:
        importlib.import_module(f"clipfast.curate.commands.{options.command}").run(options)
    except (ValueError, OSError, RuntimeError) as error:
        return fail(error)
    return 0
