"""Backward functions that have a first derivative alone say so where a second one is asked for.

torch's `once_differentiable` refuses only where the gradient that comes in has a graph. A gradient
penalty starts from ones, which have none: its result would look like a constant, and its own
gradient would be missing from the sum without a word.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def first_derivative_only(what: str, instead: str) -> Callable[[Callable[..., Any]], Any]:
    """Decorates the backward of a `torch.autograd.Function` whose results have no derivative.

    Where the caller wants a graph of them (``create_graph=True``), they are handed out with one
    that refuses to be gone back over. It leads to what `save_for_backward` was given: tensors that
    the gradients depend on.

    Args:
        what: the function, for the message.
        instead: what has a second derivative, for the message.
    """
    message = f"{what} has no second derivative; for one, use {instead}"

    def decorate(backward: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(backward)
        def wrapper(ctx: Any, *gradients: Any) -> Any:
            if not torch.is_grad_enabled() or torch.compiler.is_compiling():
                return backward(ctx, *gradients)
            with torch.no_grad():
                results = backward(ctx, *gradients)
            sources = [
                t
                for t in (*ctx.saved_tensors, *gradients)
                if isinstance(t, Tensor) and t.requires_grad
            ]
            return _refuse_beyond(results, sources, message)

        return wrapper

    return decorate


def _refuse_beyond(results: tuple[Any, ...], sources: list[Tensor], message: str) -> Any:
    places = [i for i, result in enumerate(results) if isinstance(result, Tensor)]
    held = _Refusing.apply(message, len(sources), *sources, *(results[i] for i in places))
    out = list(results)
    for i, result in zip(places, held, strict=True):
        out[i] = result
    return tuple(out)


class _Refusing(torch.autograd.Function):
    """Results of a backward, whose derivative by what they were made of is an error."""

    @staticmethod
    def forward(ctx: Any, message: str, sources: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.message = message
        return tuple(tensor.detach() for tensor in tensors[sources:])

    @staticmethod
    def backward(ctx: Any, *_gradients: Any) -> Any:
        raise NotImplementedError(ctx.message)
