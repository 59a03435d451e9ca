"""What torch.compile is told of functions."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

Function = TypeVar("Function", bound=Callable[..., object])


def constant_in_graphs(function: Function) -> Function:
    """A function that is called while a graph is traced, whose result is a constant of the graph.

    Equal to `torch.compiler.assume_constant_result`, without importing the compiler, which takes a
    second.
    """
    setattr(function, "_dynamo_marked_constant", True)  # noqa: B010
    return function
