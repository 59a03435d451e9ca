"""What the commands of this package share: how they parse, fail and name paths."""

import argparse
import importlib
import sys
from collections.abc import Callable, Sequence

from clipfast.data.report import printable
from clipfast.storage import storage_of
from clipfast.storage.paths import tidy


def run_command(function: Callable[..., int], argv: Sequence[str] | None, module: str) -> int:
    """Call `function` with the options of a command line.

    Args:
        function: its parameters and docstring become the options and their help.
        argv: the words; default those of this process.
        module: what ``python -m`` is given.

    Returns:
        The exit status: that of `function`, or 1 with the reason on stderr.
    """
    import tyro

    try:
        return tyro.cli(function, args=argv, prog=f"python -m {module}")
    except (ValueError, OSError, RuntimeError) as error:
        return fail(error)


def parser_of(
    package: str, description: str | None, commands: Sequence[str]
) -> argparse.ArgumentParser:
    """The command line of a package with subcommands.

    Args:
        package: what ``python -m`` is given; ``PACKAGE.commands.NAME`` adds the subcommand NAME.
        description: for its help.
        commands: their names.
    """
    parser = argparse.ArgumentParser(prog=f"python -m {package}", description=description)
    subparsers = parser.add_subparsers(dest="command", required=True)
    for name in commands:
        importlib.import_module(f"{package}.commands.{name}").add(subparsers)
    return parser


def fail(why: object) -> int:
    """Say why on stderr; the exit status of a failure."""
    print(f"error: {printable(str(why), keep=chr(10))}", file=sys.stderr)
    return 1


def path_of(text: str) -> str:
    """The path that a person wrote on the command line."""
    text = tidy(text)
    return storage_of(text).resolve(text)
