"""Read the tensors of a TorchScript archive without running a line of it.

Such a file is a zip: `ROOT/data.pkl` pickles the module tree, `ROOT/data/N` holds the bytes of
storage N, and `ROOT/code/` holds programs. `torch.jit.load` compiles those programs and runs code
that the file brings along; here the tree is unpickled into inert stubs, any other class is
refused, and only the tensors are taken.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from clipfast.models.inert import Inert, View
from clipfast.models.saved import read_zip

# More than any model has.
_MOST_NODES = 1 << 16
_DEEPEST = 64
# Modules that a tree has where its blocks compute an activation.
_ACTIVATIONS = {"QuickGELU": "quick_gelu", "GELU": "gelu"}


class TorchScript(NamedTuple):
    """What a TorchScript archive holds.

    Attributes:
        tensors: parameters and buffers by their dotted names, on the CPU.
        activation: "quick_gelu" or "gelu" by its modules; None where they do not tell.
    """

    tensors: dict[str, Tensor]
    activation: str | None


class _Module:
    """Stands for an object of any class that the archive defines; holds its attributes."""

    attributes: dict[str, Any]

    def __new__(cls, *_: Any) -> _Module:
        module = super().__new__(cls)
        module.attributes = {}
        return module

    def __setstate__(self, state: Any) -> None:
        if not isinstance(state, dict):
            raise pickle.UnpicklingError(f"a module's state is a {type(state).__name__}")
        self.attributes = state


class _Function(Inert):
    """A function of which the first argument is the result."""

    def __call__(self, value: Any, *_: Any) -> Any:
        return value


_FIRST = _Function()
_PICKLE = "torch.jit._pickle"
_LISTS = ("build_boollist", "build_doublelist", "build_intlist", "build_tensorlist")


def is_torchscript(names: Iterable[str]) -> bool:
    """Whether a zip is a TorchScript archive, rather than one of `torch.save`.

    Args:
        names: of its entries.

    Returns:
        True for one that carries programs or their constants beside its tensors.
    """
    return any(name.endswith("/constants.pkl") or "/code/" in name for name in names)


def read_torchscript(path: Path) -> TorchScript:
    """The parameters and buffers of a TorchScript archive, by their dotted names.

    Equal to `torch.jit.load(path, map_location="cpu").state_dict()`, without running anything.

    Args:
        path: a zip for whose names `is_torchscript` holds.

    Returns:
        Name -> CPU tensor, in the archive's dtypes, and the activation of its blocks.

    Raises:
        ValueError: if the archive is damaged or asks for a class that weights do not need.
    """
    classes: set[str] = set()

    def known(module: str, name: str) -> Any:
        if module == "__torch__" or module.startswith("__torch__."):
            classes.add(name)
            return _Module
        is_first = module == _PICKLE and name in (*_LISTS, "restore_type_tag")
        return _FIRST if is_first else None

    try:
        module, storages = read_zip(path, known)
        if not isinstance(module, _Module):
            raise ValueError(f"it holds a {type(module).__name__}, not a module")
        views = dict(_views(module))
        storages.check(views.values())
        tensors = {name: storages.tensor(view) for name, view in views.items()}
    except Exception as error:  # a damaged pickle can raise nearly anything
        text = str(error)[:500]
        raise ValueError(f"cannot read the TorchScript archive {path}: {text}") from error
    found = {_ACTIVATIONS[name] for name in classes & _ACTIVATIONS.keys()}
    return TorchScript(tensors, found.pop() if len(found) == 1 else None)


def _views(module: _Module) -> Iterator[tuple[str, View]]:
    """The tensors of a tree of modules by their dotted names, in the order of the file."""
    children: dict[int, list[tuple[str, Any]]] = {}
    # Modules may share modules. All paths are counted before any is walked: there can be 2^60.
    if _paths(module, children, {}, 0) > _MOST_NODES:
        raise ValueError(f"its modules have more than {_MOST_NODES:,} names")
    waiting: list[tuple[str, Any]] = [("", module)]
    while waiting:
        name, node = waiting.pop()
        if isinstance(node, View):
            yield name, node
            continue
        below = children[id(node)]
        waiting += [(f"{name}.{key}" if name else key, child) for key, child in reversed(below)]


def _paths(
    node: Any, children: dict[int, list[tuple[str, Any]]], counts: dict[int, int], depth: int
) -> int:
    """How many nodes a walk from this one meets, each as often as it has names."""
    if isinstance(node, View):
        return 1
    if id(node) not in counts:
        if id(node) in children or depth > _DEEPEST:
            raise ValueError("its modules contain each other")
        children[id(node)] = [
            (key, child)
            for key, child in node.attributes.items()
            if isinstance(key, str) and isinstance(child, View | _Module)
        ]
        below = (_paths(c, children, counts, depth + 1) for _, c in children[id(node)])
        counts[id(node)] = 1 + sum(below)
    return counts[id(node)]
