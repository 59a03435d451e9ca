"""Every subcommand of ``python -m clipfast.eval`` as a function."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any, TypeVar

from clipfast.eval.sharing import OtherRankFailed, Sharing
from clipfast.names import did_you_mean

T = TypeVar("T")


def run(task: str, **options: Any) -> dict[str, Any]:
    """Evaluate as ``python -m clipfast.eval TASK`` does.

        found = clipfast.eval.run("zeroshot", weights="final.safetensors", data="pets/")
        found["metrics"]["acc1"]

    Args:
        task: a subcommand, such as "zeroshot".
        options: those of the subcommand, ``--batch-size 8`` as ``batch_size=8``.

    Returns:
        What the subcommand found; of tasks that write a result, what the file holds.

    Raises:
        ValueError: no such task or option, an option is missing or is none of its choices, or what
            the subcommand refuses.
        OSError: a result cannot be written.
    """
    import importlib

    from clipfast.eval.commands import COMMANDS

    if task not in COMMANDS:
        hint = did_you_mean(task, COMMANDS)
        raise ValueError(f"no evaluation {task!r}.{hint} There are: {', '.join(COMMANDS)}")
    command = importlib.import_module(f"clipfast.eval.commands.{task}")
    return carry_out(command, _namespace(task, command, options))


def carry_out(command: Any, options: argparse.Namespace) -> dict[str, Any]:
    """Run a subcommand. Ranks that share its work end together: what one of them fails at, the
    others raise too.

    Args:
        command: its module. ``SHARES_WORK`` is true where its ``run`` is a collective.
        options: as parsed.

    Returns:
        What it found.

    Raises:
        ValueError: what the subcommand refuses, here or on another rank.
        OSError: what cannot be read or written here.
    """
    from clipfast.eval.commands.options import launched

    # A command that a rank runs by itself must not wait for the others.
    sharing = launched() if getattr(command, "SHARES_WORK", False) else Sharing()
    return together(sharing, lambda: command.run(options))


def together(sharing: Sharing, work: Callable[[], T]) -> T:
    """Do what all ranks do, and end together. A collective.

    Args:
        sharing: this rank among the others.
        work: of every rank.

    Raises:
        OtherRankFailed: it failed on another rank; what it raises here is raised.
    """
    try:
        found = work()
        sharing.wait()
    except OtherRankFailed:
        raise
    except Exception as error:
        if sharing.world_size > 1:
            sharing.tell(error)
        raise
    return found


def _namespace(task: str, command: Any, options: dict[str, Any]) -> argparse.Namespace:
    subparsers = argparse.ArgumentParser().add_subparsers(dest="command")
    command.add(subparsers)
    actions = {
        action.dest: action for action in subparsers.choices[task]._actions if action.dest != "help"
    }
    for name in options:
        if name not in actions:
            hint = did_you_mean(name, actions)
            raise ValueError(f"{task} has no option {name!r}.{hint} It has: {', '.join(actions)}")
    namespace = argparse.Namespace(command=task)
    for name, action in actions.items():
        if name not in options and action.required:
            raise ValueError(f"{task} needs {name}=: {action.help}")
        value = options.get(name, action.default)
        given = value if isinstance(value, list | tuple) else (value,)
        choices = action.choices or given
        odd = [one for one in given if one is not None and one not in choices]
        if odd:
            known = ", ".join(map(repr, choices))
            raise ValueError(f"{name} must be one of {known}; got {odd[0]!r}")
        setattr(namespace, name, _read(action, value))
    return namespace


def _read(action: argparse.Action, value: Any) -> Any:
    """A value as on the command line: text is read, numbers stay, one of a list is a list."""
    if action.nargs in ("+", "*") and isinstance(value, str):
        value = [value]
    if not callable(action.type):
        return value
    if isinstance(value, list | tuple):
        return [action.type(one) if isinstance(one, str) else one for one in value]
    return action.type(value) if isinstance(value, str) else value
