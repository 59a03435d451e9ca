"""Read the tensors of a TorchScript archive without running a line of it.

Such a file is a zip: `ROOT/data.pkl` pickles the module tree, `ROOT/data/N` holds the bytes of
storage N, and `ROOT/code/` holds programs. `torch.jit.load` compiles those programs and runs code
that the file brings along; here the tree is unpickled into inert stubs, any other class is
refused, and only the tensors are taken.
"""

from __future__ import annotations

import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from clipfast.models.zips import entry_names

# More than any model has: modules that contain each other have no end.
_MOST_NODES = 1 << 17
_LONGEST_NAME = 4096
_DTYPES = {
    "BFloat16Storage": torch.bfloat16,
    "BoolStorage": torch.bool,
    "ByteStorage": torch.uint8,
    "CharStorage": torch.int8,
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "IntStorage": torch.int32,
    "LongStorage": torch.int64,
    "ShortStorage": torch.int16,
}


class _Inert:
    """What a pickle gets in its hands. It cannot write into it: `__setstate__` refuses."""

    __slots__ = ()

    def __setstate__(self, state: Any) -> None:
        raise pickle.UnpicklingError("it writes into an object that is not its own")


class _Module:
    """Stands for an object of any class that the archive defines; holds its attributes."""

    attributes: dict[str, Any]

    def __init__(self, *_: Any) -> None:
        self.attributes = {}

    def __setstate__(self, state: Any) -> None:
        if not isinstance(state, dict):
            raise pickle.UnpicklingError(f"a module's state is a {type(state).__name__}")
        self.attributes = state


@dataclass(frozen=True)
class _Type(_Inert):
    """A class of storages, named for its dtype."""

    dtype: torch.dtype


@dataclass(frozen=True)
class _Storage(_Inert):
    tensor: Tensor


@dataclass(frozen=True)
class _View(_Inert):
    tensor: Tensor


@dataclass(frozen=True)
class _Function(_Inert):
    """A function that a pickle may call."""

    function: Callable[..., Any]

    def __call__(self, *arguments: Any) -> Any:
        return self.function(*arguments)


def _rebuild_tensor(storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> _View:
    if not isinstance(storage, _Storage):
        raise pickle.UnpicklingError("a tensor without a storage")
    return _View(torch.as_strided(storage.tensor, tuple(size), tuple(stride), offset))


def _first(value: Any, *_: Any) -> Any:
    return value


_ALLOWED: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("torch", "device"): _Function(_first),
    ("torch._utils", "_rebuild_tensor_v2"): _Function(_rebuild_tensor),
    ("torch._utils", "_rebuild_parameter"): _Function(_first),
    ("torch.jit._pickle", "build_boollist"): _Function(_first),
    ("torch.jit._pickle", "build_doublelist"): _Function(_first),
    ("torch.jit._pickle", "build_intlist"): _Function(_first),
    ("torch.jit._pickle", "build_tensorlist"): _Function(_first),
    ("torch.jit._pickle", "restore_type_tag"): _Function(_first),
}


class _ArchiveUnpickler(pickle.Unpickler):
    def __init__(self, archive: zipfile.ZipFile, root: str) -> None:
        super().__init__(archive.open(f"{root}data.pkl"))
        self._archive, self._root = archive, root
        self._storages: dict[str, _Storage] = {}

    def find_class(self, module: str, name: str) -> Any:
        if module == "__torch__" or module.startswith("__torch__."):
            return _Module
        if module == "torch" and name in _DTYPES:
            return _Type(_DTYPES[name])
        if (module, name) in _ALLOWED:
            return _ALLOWED[module, name]
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no weights need")

    def persistent_load(self, pid: Any) -> _Storage:
        kind, given, key, _device, numel = pid
        if kind != "storage" or not isinstance(given, _Type) or not isinstance(key, str):
            raise pickle.UnpicklingError("an unknown persistent object")
        dtype = given.dtype
        if key not in self._storages:
            data = bytearray(self._archive.read(f"{self._root}data/{key}"))
            if len(data) != numel * dtype.itemsize:
                raise pickle.UnpicklingError(
                    f"storage {key[:99]} has {len(data)} bytes, not as many as its {dtype} need"
                )
            empty = torch.empty(0, dtype=dtype, device="cpu")
            self._storages[key] = _Storage(torch.frombuffer(data, dtype=dtype) if data else empty)
        return self._storages[key]


def is_torchscript(path: Path) -> bool:
    """Whether a file is a TorchScript archive, rather than one of `torch.save`.

    Args:
        path: an existing file.

    Returns:
        True for a zip that carries programs or their constants beside its tensors.

    Raises:
        ValueError: it is a zip, and its directory is damaged or claims absurd sizes.
    """
    names = entry_names(path) or ()
    return any(name.endswith("/constants.pkl") or "/code/" in name for name in names)


def read_torchscript(path: Path) -> dict[str, Tensor]:
    """The parameters and buffers of a TorchScript archive, by their dotted names.

    Equal to `torch.jit.load(path, map_location="cpu").state_dict()`, without running anything.

    Args:
        path: a file for which `is_torchscript` holds.

    Returns:
        Name -> CPU tensor, in the archive's dtypes.

    Raises:
        ValueError: if the archive is damaged or asks for a class that weights do not need.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            root = min((n for n in names if n.endswith("/data.pkl")), key=len, default="")
            if not root:
                raise pickle.UnpicklingError("it has no data.pkl")
            root = root.removesuffix("data.pkl")
            if f"{root}byteorder" in names and archive.read(f"{root}byteorder") != b"little":
                raise pickle.UnpicklingError("its numbers are big-endian")
            module = _ArchiveUnpickler(archive, root).load()
    except Exception as error:  # a damaged pickle can raise nearly anything
        raise ValueError(f"cannot read the TorchScript archive {path}: {error}") from error
    try:
        return dict(_tensors(module))
    except ValueError as error:
        raise ValueError(f"cannot read the TorchScript archive {path}: {error}") from error


def _tensors(module: Any) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a tree of modules by their dotted names, in the order of the file."""
    waiting = [("", module)]
    for _ in range(_MOST_NODES):
        if not waiting:
            return
        name, node = waiting.pop()
        if isinstance(node, _View):
            yield name, node.tensor
        elif isinstance(node, _Module):
            children = [
                (f"{name}.{key}" if name else str(key), child)
                for key, child in node.attributes.items()
                if isinstance(key, str) and isinstance(child, _View | _Module)
            ]
            waiting += reversed(children)
        if len(name) > _LONGEST_NAME:
            break
    raise ValueError("its modules contain each other")
