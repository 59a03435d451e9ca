"""What the collectives of a process move, counted where torch starts them."""

from collections import Counter
from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# Kind of each operator, and the tensors whose bytes count: those that hold all ranks' parts.
_OPERATORS: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "c10d::allreduce_": ("all_reduce", lambda args: args[0]),
    "c10d::_allgather_base_": ("all_gather", lambda args: args[0]),
    "c10d::allgather_": ("all_gather", lambda args: args[0]),
    "c10d::_reduce_scatter_base_": ("reduce_scatter", lambda args: args[1]),
    "c10d::broadcast_": ("broadcast", lambda args: args[0]),
    "_c10d_functional::all_reduce": ("all_reduce", lambda args: args[0]),
    "_c10d_functional::all_gather_into_tensor": ("all_gather", lambda args: [args[0]] * args[1]),
    "_c10d_functional::reduce_scatter_tensor": ("reduce_scatter", lambda args: args[0]),
    "_c10d_functional::wait_tensor": ("", lambda args: []),
}
# Norms, flags and counts are reduced or told; what is gathered is a weight, also where it is small.
SMALL = {"all_reduce": 16, "broadcast": 1024}


class Collectives(TorchDispatchMode):
    """Inside, every collective is counted by its kind.

    Attributes:
        bytes: moved by each kind, in messages that are not small.
        times: how often each kind was called with them.
        small: bytes of all small messages.

    An operator that is not known fails, so that no collective goes uncounted.
    """

    def __init__(self) -> None:
        super().__init__()
        self.bytes: Counter[str] = Counter()
        self.times: Counter[str] = Counter()
        self.small = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name
        if name.split("::")[0] in ("c10d", "_c10d_functional") and name != "c10d::barrier":
            kind, counted = _OPERATORS[name]
            moved = sum(t.nbytes for t in tree_leaves(counted(args)) if isinstance(t, Tensor))
            if kind and moved > SMALL.get(kind, 0):
                self.bytes[kind] += moved
                self.times[kind] += 1
            else:
                self.small += moved
        return func(*args, **(kwargs or {}))
