"""Spellings of the version before, accepted for one release with a line that says so."""

import functools
from collections.abc import Callable
from typing import Any, TypeVar

from clipfast.models.renamed import warn_renamed

_Options = TypeVar("_Options", bound=type)


def renamed_field(old: str, new: str, option: str) -> Callable[[_Options], _Options]:
    """Let a frozen dataclass take and give a field under its old name too.

    Args:
        old: the name until now.
        new: the field.
        option: where it stands on the command line, such as ``--model``.

    Returns:
        A decorator that is applied to the finished dataclass. The old name warns with
        ``DeprecationWarning``; where both are given, as by ``dataclasses.replace``, it counts.
    """

    def decorate(cls: _Options) -> _Options:
        make: Callable[..., None] = vars(cls)["__init__"]

        @functools.wraps(make)
        def init(self: Any, *values: Any, **fields: Any) -> None:
            if old in fields:
                warn_renamed(f"{option}.{old}", f"{option}.{new}")
                fields[new] = fields.pop(old)
            make(self, *values, **fields)

        def read(self: Any) -> Any:
            warn_renamed(f"{option}.{old}", f"{option}.{new}")
            return getattr(self, new)

        setattr(cls, "__init__", init)  # noqa: B010
        setattr(cls, old, property(read, doc=f"The old name of ``{new}``."))
        return cls

    return decorate


def renamed_options(arguments: list[str], names: dict[str, str]) -> tuple[list[str], list[str]]:
    """Command-line arguments in today's spelling.

    Args:
        arguments: as typed: ``--model.checkpoint full`` or ``--model.checkpoint=full``.
        names: new option by old one.

    Returns:
        The arguments, and a line for each option that was spelled in the old way.
    """
    kept, lines = [], []
    for argument in arguments:
        option, equals, value = argument.partition("=")
        if option in names:
            lines.append(f"{option} is now {names[option]}; the old name goes in version 0.3")
            argument = names[option] + equals + value
        kept.append(argument)
    return kept, lines
