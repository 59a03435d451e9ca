"""Refusals that name what was expected, what came, and what exists."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from clipfast.arguments import WrongKindError, shown
from clipfast.names import did_you_mean

_SHOWN = 4


def require(condition: bool, message: str) -> None:
    """Refuse a value.

    Args:
        condition: what must hold.
        message: what was expected, what came, and the remedy.

    Raises:
        ValueError: where it does not hold.
    """
    if not condition:
        raise ValueError(message)


def require_whole(**values: Any) -> None:
    """Refuse fields that are no whole numbers; what numpy has for one is one.

    Args:
        values: by the names that a caller gives them.

    Raises:
        WrongKindError: one is none.
    """
    for name, value in values.items():
        if isinstance(value, bool) or not hasattr(value, "__index__"):
            raise WrongKindError(f"{name} must be a whole number; got {shown(value)}")


def unknown_name(kind: str, name: str, known: Iterable[str], of: str = "") -> str:
    """The message for a name that does not exist: what was given, the nearest, and all there are.

    Args:
        kind: what the name stands for, such as "model".
        name: what was given.
        known: every name that exists.
        of: to what they belong, with its leading blank.

    Returns:
        One line of text.
    """
    known = list(known)
    return f"unknown {kind} {name!r}{of}.{did_you_mean(name, known)} Known: {', '.join(known)}"


def some_of(items: Iterable[str]) -> str:
    """The first few of many names, and how many more there are.

    Args:
        items: the names.

    Returns:
        One line of text.
    """
    items = list(items)
    rest = f", and {len(items) - _SHOWN} more" if len(items) > _SHOWN else ""
    return ", ".join(items[:_SHOWN]) + rest
