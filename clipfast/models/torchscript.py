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
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

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


class _Module:
    """Stands for an object of any class that the archive defines; holds its attributes."""

    attributes: dict[str, Any]

    def __init__(self, *_: Any) -> None:
        self.attributes = {}

    def __setstate__(self, state: Any) -> None:
        if not isinstance(state, dict):
            raise pickle.UnpicklingError(f"a module's state is a {type(state).__name__}")
        self.attributes = state


def _rebuild_tensor(storage: Tensor, offset: int, size: Any, stride: Any, *_: Any) -> Tensor:
    if not isinstance(storage, torch.Tensor) or storage.ndim != 1:
        raise pickle.UnpicklingError("a tensor without a storage")
    return torch.as_strided(storage, tuple(size), tuple(stride), offset)


def _rebuild_parameter(data: Tensor, *_: Any) -> Tensor:
    return data


def _first(value: Any, *_: Any) -> Any:
    return value


_ALLOWED: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("torch", "device"): _first,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
    ("torch.jit._pickle", "build_boollist"): _first,
    ("torch.jit._pickle", "build_doublelist"): _first,
    ("torch.jit._pickle", "build_intlist"): _first,
    ("torch.jit._pickle", "build_tensorlist"): _first,
    ("torch.jit._pickle", "restore_type_tag"): _first,
}


class _ArchiveUnpickler(pickle.Unpickler):
    def __init__(self, archive: zipfile.ZipFile, root: str) -> None:
        super().__init__(archive.open(f"{root}data.pkl"))
        self._archive, self._root = archive, root
        self._storages: dict[str, Tensor] = {}

    def find_class(self, module: str, name: str) -> Any:
        if module == "__torch__" or module.startswith("__torch__."):
            return _Module
        if module == "torch" and name in _DTYPES:
            return _DTYPES[name]
        if (module, name) in _ALLOWED:
            return _ALLOWED[module, name]
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no weights need")

    def persistent_load(self, pid: Any) -> Tensor:
        kind, dtype, key, _device, numel = pid
        if kind != "storage" or not isinstance(dtype, torch.dtype):
            raise pickle.UnpicklingError(f"an unknown persistent object {kind!r}")
        if key not in self._storages:
            data = bytearray(self._archive.read(f"{self._root}data/{key}"))
            if len(data) != numel * dtype.itemsize:
                raise pickle.UnpicklingError(
                    f"storage {key} has {len(data)} bytes, not {numel} of {dtype}"
                )
            empty = torch.empty(0, dtype=dtype, device="cpu")
            self._storages[key] = torch.frombuffer(data, dtype=dtype) if data else empty
        return self._storages[key]


def is_torchscript(path: Path) -> bool:
    """Whether a file is a TorchScript archive, rather than one of `torch.save`.

    Args:
        path: an existing file.

    Returns:
        True for a zip that carries programs or their constants beside its tensors.
    """
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(n.endswith("/constants.pkl") or "/code/" in n for n in archive.namelist())


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
            root = min((n for n in names if n.endswith("/data.pkl")), key=len)[: -len("data.pkl")]
            if f"{root}byteorder" in names and archive.read(f"{root}byteorder") != b"little":
                raise pickle.UnpicklingError("its numbers are big-endian")
            module = _ArchiveUnpickler(archive, root).load()
    except Exception as error:  # a damaged pickle can raise nearly anything
        raise ValueError(f"cannot read the TorchScript archive {path}: {error}") from error
    tensors: dict[str, Tensor] = {}
    _collect(module, "", tensors)
    return tensors


def _collect(node: Any, name: str, tensors: dict[str, Tensor], depth: int = 0) -> None:
    if depth > 64:
        raise ValueError("the archive's modules contain each other")
    if isinstance(node, torch.Tensor):
        tensors[name] = node
    elif isinstance(node, _Module):
        for key, child in node.attributes.items():
            _collect(child, f"{name}.{key}" if name else str(key), tensors, depth + 1)
