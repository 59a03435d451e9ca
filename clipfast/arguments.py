"""Arguments of public functions, checked where they come in."""

import math
import operator
from typing import Any


class WrongKindError(TypeError, ValueError):
    """An argument of another kind than the function takes.

    It is both errors: a caller that catches the ``ValueError`` of an argument out of its range also
    catches this one.
    """


def whole_number(name: str, value: Any, least: int, most: int | None = None, why: str = "") -> int:
    """A whole number in its range. What Python takes for an index is one: numpy's integers too.

    Args:
        name: of the argument.
        value: what was given.
        least: the smallest that is taken.
        most: the largest; None: there is none.
        why: what stands behind the range, or what to do, for a person.

    Returns:
        It, as an ``int``.

    Raises:
        WrongKindError: it is no whole number.
        ValueError: it is out of its range.
    """
    wanted = f"at least {least:,}" if most is None else f"from {least:,} to {most:,}"
    behind = f": {why}" if why else ""
    try:
        if _is_truth(value):
            raise TypeError
        number = operator.index(value)
    except TypeError:
        raise WrongKindError(
            f"{name} must be a whole number, {wanted}; got {shown(value)}{behind}"
        ) from None
    if number < least or (most is not None and number > most):
        raise ValueError(f"{name} must be {wanted}; got {number}{behind}")
    return number


def real_number(name: str, value: Any) -> float:
    """A finite number.

    Args:
        name: of the argument.
        value: what was given.

    Returns:
        It, as a ``float``.

    Raises:
        WrongKindError: it is no number.
        ValueError: it is infinite or not a number.
    """
    if _is_truth(value) or isinstance(value, str | bytes):
        raise WrongKindError(f"{name} must be a number; got {shown(value)}")
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise WrongKindError(f"{name} must be a number; got {shown(value)}") from None
    if not math.isfinite(number):
        raise ValueError(f"{name} must be finite; got {number}")
    return number


def truth(name: str, value: Any) -> bool:
    """True or False; a text such as "no" would count as true.

    Args:
        name: of the argument.
        value: what was given.

    Raises:
        WrongKindError: it is neither.
    """
    if not _is_truth(value):
        raise WrongKindError(f"{name} must be True or False; got {shown(value)}")
    return bool(value)


def shown(value: Any) -> str:
    """A value for a message, with its kind, cut where it is long."""
    text = repr(value)
    return f"{text if len(text) <= 60 else text[:57] + '...'} ({type(value).__name__})"


def _is_truth(value: Any) -> bool:
    """Whether it is True or False, of Python or numpy: as a number almost surely a mistake."""
    # numpy's own was called bool_ before its version 2.
    return type(value).__name__ in ("bool", "bool_")
