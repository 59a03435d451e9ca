"""The operators that a pass calls, by their arguments' shapes: what there is to be timed of it."""

from collections import Counter
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_unflatten


@dataclass(frozen=True)
class Shape:
    """A tensor without its numbers.

    Attributes:
        size, stride, dtype: of the tensor.
    """

    size: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype

    def make(self) -> Tensor:
        """A tensor of this shape on the CPU: numbers around one, indices of the first row."""
        reach = 1 + sum((n - 1) * step for n, step in zip(self.size, self.stride, strict=True))
        flat = torch.zeros(max(1, reach), dtype=self.dtype)
        if self.dtype.is_floating_point:
            flat.uniform_(0.5, 1.5)
        elif self.dtype == torch.bool:
            flat.fill_(True)
        return flat.as_strided(self.size, self.stride)


@dataclass(frozen=True)
class Call:
    """An operator with arguments of certain shapes.

    Attributes:
        func: its overload.
        leaves: arguments in a row, tensors as `Shape`.
        form: how they are nested.
    """

    func: Any
    leaves: tuple[Hashable, ...]
    form: Any

    def run(self, leaves: list[Any]) -> Any:
        """Call it.

        Args:
            leaves: of `make`.
        """
        args, kwargs = tree_unflatten(leaves, self.form)
        return self.func(*args, **kwargs)

    def make(self) -> list[Any]:
        """Arguments with numbers in them."""
        return [leaf.make() if isinstance(leaf, Shape) else leaf for leaf in self.leaves]


class Calls(TorchDispatchMode):
    """Notes the operators that are called inside, views left out.

    Attributes:
        counts: how often each.
        total: calls in all, of views too.
    """

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[Call] = Counter()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        self.total += 1
        if not func.is_view:
            leaves, form = tree_flatten((args, kwargs))
            shapes = tuple(
                Shape(tuple(leaf.shape), leaf.stride(), leaf.dtype)
                if isinstance(leaf, Tensor)
                else leaf
                for leaf in leaves
            )
            self.counts[Call(func, shapes, form)] += 1
        return func(*args, **kwargs)
