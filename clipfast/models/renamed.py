"""Names of version 0.1 that 0.2 still accepts: "checkpoint" now means saved state only."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any, TypeVar

Result = TypeVar("Result")


def warn_renamed(old: str, new: str) -> None:
    """Say once per place of use that a name is going away.

    Args:
        old: as version 0.1 spells it.
        new: as it is spelt now.
    """
    message = f"{old} is now {new}; the old name goes in version 0.3"
    warnings.warn(message, DeprecationWarning, stacklevel=3)


def renamed_argument(
    old: str, new: str
) -> Callable[[Callable[..., Result]], Callable[..., Result]]:
    """Let a function take a keyword argument by its old name too.

    Args:
        old: as version 0.1 spells it.
        new: as it is spelt now.

    Returns:
        A decorator. The function it returns raises TypeError where both names are given.
    """

    def decorate(function: Callable[..., Result]) -> Callable[..., Result]:
        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Result:
            if old in kwargs:
                if new in kwargs:
                    raise TypeError(f"{old}= is the old name of {new}=: give {new}= alone")
                warn_renamed(f"{old}=", f"{new}=")
                kwargs[new] = kwargs.pop(old)
            return function(*args, **kwargs)

        return call

    return decorate
