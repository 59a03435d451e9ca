"""What the fields of the configuration may hold: ranges of numbers, and choices."""

import dataclasses
import math
import types
from collections.abc import Iterator
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

ALIASES = {
    "--schedule.max-steps": "--max-steps",
    "--model.bn-batch": "--bn-batch",
    "--zero.stage": "--zero-stage",
    "--logging.profile": "--profile",
    "--checkpoint.resume": "--resume",
    "--checkpoint.resume-with-changes": "--resume-with-changes",
}


class ConfigError(ValueError):
    """A configuration that cannot run; the message names the option and the remedy."""


@dataclass(frozen=True)
class Range:
    """The numbers that an option takes.

    Attributes:
        least: the smallest.
        most: the largest.
        above: what it must be larger than.
        below: what it must be smaller than.
        why: what the end of the range means, for a person.
    """

    least: float = -math.inf
    most: float = math.inf
    above: float = -math.inf
    below: float = math.inf
    why: str = ""

    def __contains__(self, value: float) -> bool:
        # An infinite value is in no range: nothing that an option stands for is infinite.
        return (
            math.isfinite(value)
            and self.least <= value <= self.most
            and self.above < value < self.below
        )

    def __str__(self) -> str:
        parts = [
            f"{words} {number:,}" if isinstance(number, int) else f"{words} {number:g}"
            for words, number in (
                ("at least", self.least),
                ("above", self.above),
                ("at most", self.most),
                ("below", self.below),
            )
            if math.isfinite(number)
        ]
        text = " and ".join(parts) or "finite"
        return f"{text}: {self.why}" if self.why else text


def option_name(group: str, name: str) -> str:
    """How a field is spelled on the command line.

    Args:
        group: of the field, such as ``--optimizer``; empty for the outermost.
        name: of the field.
    """
    spelled = name.replace("_", "-")
    long = f"{group}.{spelled}" if group else f"--{spelled}"
    return ALIASES.get(long, long)


def check_fields(options: Any, group: str, **ranges: Range) -> None:
    """Refuse what no run can work with, one field at a time.

    A field annotated with ``Literal`` holds one of its choices. A number is of its type, finite,
    and in its range. Texts and groups are not looked at.

    Args:
        options: a dataclass of the configuration.
        group: where it stands on the command line, such as ``--optimizer``; empty for outermost.
        ranges: of its numbers.

    Raises:
        ConfigError: a field holds something else; the message names the option.
    """
    hints = get_type_hints(type(options))
    for each in dataclasses.fields(options):
        option = option_name(group, each.name)
        value = getattr(options, each.name)
        allowed = list(_alternatives(hints[each.name]))
        choices = [c for kind in allowed if get_origin(kind) is Literal for c in get_args(kind)]
        if value is None and type(None) in allowed:
            continue
        if choices and value in choices:
            continue
        if choices and (isinstance(value, str) or not {int, float} & set(allowed)):
            known = ", ".join(map(str, choices))
            raise ConfigError(f"{option} must be one of {known}; got {value!r}")
        if int in allowed or float in allowed:
            _check_number(option, value, int in allowed, ranges.get(each.name, Range()))


def _check_number(option: str, value: Any, whole: bool, numbers: Range) -> None:
    fits = isinstance(value, Integral if whole else Real)
    if not fits or isinstance(value, bool):
        what = "a whole number" if whole else "a number"
        raise ConfigError(f"{option} must be {what}; got {value!r}")
    try:
        inside = value in numbers
    except OverflowError:
        # A whole number beyond every float.
        inside = False
    if not inside:
        raise ConfigError(f"{option} must be {numbers}; got {value}")


def _alternatives(hint: Any) -> Iterator[Any]:
    if get_origin(hint) in (Union, types.UnionType):
        for part in get_args(hint):
            yield from _alternatives(part)
    else:
        yield hint
