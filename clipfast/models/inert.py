"""Pickles read into inert objects: nothing that a file names is imported or called.

A pickle is a program. Here it gets stand-ins in its hands instead of classes and functions: a
tensor becomes a `View`, which says where its numbers lie, an object of settings becomes an empty
`Settings`, and what is neither is refused by its name.

Bounds: a pickle has at most 512 KiB and a 64th of its file, `largest_pickle`. Each of its bytes
makes a small object at most, so that it takes no more memory than twice its file and 64 MiB.
"""

from __future__ import annotations

import io
import pickle
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

_FREE_PICKLE = 1 << 19
_LARGEST_PICKLE = 8 << 20
_MOST_ODD_KEYS = 4096

_STORAGES = {
    "BFloat16Storage": torch.bfloat16,
    "BoolStorage": torch.bool,
    "ByteStorage": torch.uint8,
    "CharStorage": torch.int8,
    "ComplexDoubleStorage": torch.complex128,
    "ComplexFloatStorage": torch.complex64,
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "IntStorage": torch.int32,
    "LongStorage": torch.int64,
    "QInt32Storage": torch.qint32,
    "QInt8Storage": torch.qint8,
    "QUInt8Storage": torch.quint8,
    "ShortStorage": torch.int16,
    "UntypedStorage": torch.uint8,
}


class Inert:
    """What a pickle gets in its hands. It cannot write into it: `__setstate__` refuses."""

    __slots__ = ()

    def __setstate__(self, state: Any) -> None:
        raise pickle.UnpicklingError("it writes into an object that is not its own")


@dataclass(frozen=True)
class Stored(Inert):
    """A storage: numbers of one type that lie end to end in the file.

    Attributes:
        key: its name in the file.
        dtype: of the numbers.
        numel: how many there are.
    """

    key: str
    dtype: torch.dtype
    numel: int


@dataclass(frozen=True)
class View(Inert):
    """A tensor: some numbers of a storage.

    Attributes:
        storage: that has them.
        dtype: of the tensor.
        offset: of the first, in numbers.
        size: per dimension.
        stride: per dimension, in numbers.
    """

    storage: Stored
    dtype: torch.dtype
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


@dataclass(frozen=True)
class Odd(Inert):
    """A tensor of a kind that no weights have.

    Attributes:
        kind: in a word or two, such as "sparse".
    """

    kind: str


@dataclass(frozen=True)
class _Named(Inert):
    """A class or number type that is only passed on."""

    name: str
    dtype: torch.dtype | None = None


@dataclass(frozen=True)
class _Function(Inert):
    """A function that a pickle may call."""

    function: Callable[..., Any]

    def __call__(self, *arguments: Any) -> Any:
        return self.function(*arguments)


class Ordered(dict[Any, Any]):
    """Stands for an `OrderedDict`, a `Counter` or a `defaultdict`."""

    __slots__ = ()

    def __setstate__(self, state: Any) -> None:
        """Leave out what was attached to it, such as the versions of modules."""


class Settings(dict[Any, Any]):
    """Stands for an object of settings, such as an `argparse.Namespace`. It holds nothing."""

    __slots__ = ()

    def __new__(cls, *_: Any, **__: Any) -> Settings:
        return super().__new__(cls)

    def __init__(self, *_: Any, **__: Any) -> None:
        super().__init__()

    def __setitem__(self, name: Any, value: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass

    def append(self, item: Any) -> None:
        """Leave it out."""

    def extend(self, items: Any) -> None:
        """Leave them out."""


def _first(value: Any, *_: Any) -> Any:
    return value


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, *rest: Any) -> View:
    given = rest[2] if len(rest) > 2 else None
    dtype = given.dtype if isinstance(given, _Named) else getattr(storage, "dtype", None)
    if not isinstance(storage, Stored) or dtype is None:
        raise pickle.UnpicklingError("a tensor without a storage")
    size, stride = tuple(size), tuple(stride)
    numbers = (offset, *size, *stride)
    if not all(type(n) is int for n in numbers) or len(size) != len(stride) or len(size) > 64:
        raise pickle.UnpicklingError("a tensor whose shape is no shape")
    return View(storage, dtype, offset, size, stride)


def _ordered(*arguments: Any) -> Ordered:
    # The first argument of a defaultdict is its factory.
    found = Ordered()
    for items in arguments:
        pairs = items.items() if isinstance(items, dict) else items
        for key, value in pairs if isinstance(items, list | tuple | dict) else ():
            if not _is_quick(key):
                raise pickle.UnpicklingError(f"a {type(key).__name__} is no name")
            found[key] = value
    return found


def _is_quick(key: Any) -> bool:
    """Whether no file can choose the hash of such a key."""
    return type(key) in (str, bytes, bool) or (type(key) is int and abs(key) < 1 << 60)


def _check_odd_key(key: Any) -> None:
    """Refuse a key whose hash takes long: a tuple of tuples can have 2^60 elements."""
    items = key if isinstance(key, tuple) else (key,)
    allowed = (float, int, type(None), Inert)
    if len(items) > 64 or not all(_is_quick(i) or isinstance(i, allowed) for i in items):
        raise pickle.UnpicklingError(f"a {type(key).__name__} is no name")


def _typed(function: Any, kind: Any, arguments: Any, *_: Any) -> Any:
    """A tensor with attributes, or of a subclass."""
    if not isinstance(function, _Function) or getattr(kind, "name", "") not in _PLAIN:
        return Odd("of a class of its own")
    return function(*arguments)


def _odd(kind: str) -> _Function:
    return _Function(lambda *_: Odd(kind))


_PLAIN = ("Tensor", "Parameter", "Buffer")
_REBUILDERS: dict[str, _Function] = {
    "_rebuild_device_tensor_from_cpu_tensor": _Function(_first),
    "_rebuild_device_tensor_from_numpy": _Function(_first),
    "_rebuild_meta_tensor_no_storage": _odd("without memory"),
    "_rebuild_nested_tensor": _odd("nested"),
    "_rebuild_parameter": _Function(_first),
    "_rebuild_parameter_with_state": _Function(_first),
    "_rebuild_qtensor": _odd("quantised"),
    "_rebuild_sparse_csr_tensor": _odd("sparse"),
    "_rebuild_sparse_tensor": _odd("sparse"),
    "_rebuild_tensor": _Function(_tensor),
    "_rebuild_tensor_v2": _Function(_tensor),
    "_rebuild_tensor_v3": _Function(_tensor),
    "_rebuild_wrapper_subclass": _odd("of a class of its own"),
}
_KNOWN: dict[tuple[str, str], Any] = {
    ("collections", "Counter"): _Function(_ordered),
    ("collections", "OrderedDict"): _Function(_ordered),
    ("collections", "defaultdict"): _Function(_ordered),
    ("torch", "Size"): _Function(tuple),
    ("torch", "Tensor"): _Named("Tensor"),
    ("torch", "device"): _Function(_first),
    ("torch._tensor", "_rebuild_from_type_v2"): _Function(_typed),
    ("torch.nn", "Buffer"): _Named("Buffer"),
    ("torch.nn", "Parameter"): _Named("Parameter"),
    ("torch.nn.parameter", "Buffer"): _Named("Buffer"),
    ("torch.nn.parameter", "Parameter"): _Named("Parameter"),
    ("torch.serialization", "_get_layout"): _Function(_first),
    ("torch.torch_version", "TorchVersion"): _Function(_first),
    **{("torch._utils", name): function for name, function in _REBUILDERS.items()},
}
# Objects that programs leave beside their weights, and that hold settings or numbers of their own.
_SETTINGS = (
    *("argparse", "datetime", "easydict", "fractions", "decimal", "ml_collections", "omegaconf"),
    *("lightning", "lightning_fabric", "pytorch_lightning", "pathlib", "typing", "yacs", "uuid"),
    "numpy",
)
_SETTINGS_NAMES = {
    ("_codecs", "encode"),
    ("types", "SimpleNamespace"),
    *(
        (builtins, name)
        for builtins in ("builtins", "__builtin__")
        for name in ("set", "frozenset", "complex", "slice", "range", "xrange", "bytearray", "bool",
                     "int", "float", "str", "list", "dict", "tuple", "bytes", "object", "long")
    ),
}  # fmt: skip
_NUMPY_ARRAYS = {"_reconstruct", "_frombuffer"}
# A class of theirs in a file means that a module was pickled, and not its state.
_MODELS = (
    *("torch.nn", "torch.fx", "torch.jit", "torch._dynamo", "clip", "clipfast", "open_clip"),
    *("timm", "transformers", "peft"),
)
# An attribute of each module of torch, and of no tensor.
_MODULE_MARK = b"_forward_hooks"


# Python's own reader in Python: the one in C takes as much memory for its notes as a file asks for.
_Reader: Any = vars(pickle)["_Unpickler"]


class InertUnpickler(_Reader):
    """Reads a pickle of torch into inert objects.

    Args:
        file: the pickle.
        known: what stands for a module's name, where it is one of the caller's own.
        has_module: see `shows_module`; for messages.

    Attributes:
        storages: by their names in the file.
    """

    def __init__(
        self,
        file: Any,
        known: Callable[[str, str], Any] | None = None,
        *,
        has_module: bool = False,
    ) -> None:
        super().__init__(file, encoding="utf-8", errors="replace")
        self._has_module = has_module
        self._known = known or (lambda module, name: None)
        self._odd_keys = 0
        self.storages: dict[str, Stored] = {}

    def find_class(self, module: str, name: str) -> Any:
        """What stands for a class or function.

        Raises:
            UnpicklingError: nothing does.
        """
        if (own := self._known(module, name)) is not None:
            return own
        if (module, name) in _KNOWN:
            return _KNOWN[module, name]
        if module in ("torch", "torch.storage") and name in _STORAGES:
            return _Named(name, _STORAGES[name])
        if module == "torch" and isinstance(dtype := vars(torch).get(name), torch.dtype):
            return _Named(name, dtype)
        if module == "torch" and isinstance(vars(torch).get(name), torch.qscheme):
            return _Named(name)
        top = module.partition(".")[0]
        if top == "numpy" and name in _NUMPY_ARRAYS:
            return _odd("an array of NumPy")
        if top in _SETTINGS or (module, name) in _SETTINGS_NAMES:
            return Settings
        raise pickle.UnpicklingError(_refusal(module, name, self._has_module))

    def persistent_load(self, pid: Any) -> Stored:
        """The storage of a name such as ("storage", type, key, device, number of elements)."""
        if not isinstance(pid, tuple) or len(pid) not in (5, 6) or pid[0] != "storage":
            raise pickle.UnpicklingError("an unknown persistent object")
        _, kind, key, _device, numel, *view = pid
        dtype = getattr(kind, "dtype", None)
        if dtype is None or type(key) not in (str, int) or type(numel) is not int or numel < 0:
            raise pickle.UnpicklingError("an unknown persistent object")
        if view and view[0] is not None:
            raise pickle.UnpicklingError("a storage that is a part of another one")
        found = Stored(str(key), dtype, numel)
        before = self.storages.setdefault(found.key, found)
        if _bytes(before) != _bytes(found):
            raise pickle.UnpicklingError(f"storage {found.key[:99]} has two sizes")
        return found

    def get_extension(self, code: int) -> None:
        """Refuse what a number stands for in this process."""
        raise pickle.UnpicklingError("it asks for a registered extension, which no weights need")

    def _check_keys(self, keys: Iterable[Any]) -> None:
        """Keys of one hash would take a time that grows with the square of their number."""
        for key in keys:
            if not _is_quick(key):
                _check_odd_key(key)
                self._odd_keys += 1
        if self._odd_keys > _MOST_ODD_KEYS:
            raise pickle.UnpicklingError("it has too many keys that are no names")

    def _load_setitem(self) -> None:
        self._check_keys(self.stack[-2:-1])
        super().load_setitem()

    def _load_setitems(self) -> None:
        self._check_keys(self.stack[::2])
        super().load_setitems()

    def _load_dict(self) -> None:
        self._check_keys(self.stack[::2])
        super().load_dict()

    def _load_additems(self) -> None:
        self._check_keys(self.stack)
        super().load_additems()

    def _load_frozenset(self) -> None:
        self._check_keys(self.stack)
        super().load_frozenset()

    def _load_bytearray8(self) -> None:
        # It would be allocated before its bytes are there.
        raise pickle.UnpicklingError("it has an array of bytes, which no weights need")

    dispatch: ClassVar[dict[int, Any]] = {
        **_Reader.dispatch,
        pickle.SETITEM[0]: _load_setitem,
        pickle.SETITEMS[0]: _load_setitems,
        pickle.DICT[0]: _load_dict,
        pickle.ADDITEMS[0]: _load_additems,
        pickle.FROZENSET[0]: _load_frozenset,
        pickle.BYTEARRAY8[0]: _load_bytearray8,
    }


def largest_pickle(file_size: int) -> int:
    """Bytes that the pickle in a file of so many bytes may have."""
    return min(_LARGEST_PICKLE, _FREE_PICKLE + file_size // 64)


def shows_module(data: bytes) -> bool:
    """Whether a pickle seems to hold a module of torch, of whatever class.

    Args:
        data: the pickle.
    """
    return _MODULE_MARK in data


def unpickle(
    data: bytes, known: Callable[[str, str], Any] | None = None
) -> tuple[Any, dict[str, Stored]]:
    """What a pickle holds, and its storages by name.

    Args:
        data: the pickle.
        known: see `InertUnpickler`.

    Raises:
        Exception: nearly any, for a damaged one.
    """
    unpickler = InertUnpickler(io.BytesIO(data), known, has_module=shows_module(data))
    return unpickler.load(), unpickler.storages


def _bytes(storage: Stored) -> int:
    return storage.numel * storage.dtype.itemsize


def _is_of_model(module: str, has_module: bool) -> bool:
    """Whether what a file asks for is a class of a model, and no function such as `os.system`."""
    if module == "__main__" or any(f"{module}.".startswith(f"{m}.") for m in _MODELS):
        return True
    top = module.partition(".")[0]
    return has_module and top not in sys.stdlib_module_names and top not in ("torch", "deepspeed")


def _refusal(module: str, name: str, has_module: bool) -> str:
    text = f"it asks for {f'{module}.{name}'[:99]}, which no weights need"
    if _is_of_model(module, has_module):
        text += (
            ": it is a whole pickled model, or has a part of one beside its weights. Write "
            "model.state_dict() in the program that made it"
        )
    elif module.startswith("torch.distributed"):
        text += (
            ": its tensors are distributed over ranks. Gather them there with "
            "torch.distributed.checkpoint.state_dict.get_model_state_dict(..., options="
            "StateDictOptions(full_state_dict=True))"
        )
    elif module.partition(".")[0] == "deepspeed":
        text += ": it is a part of a DeepSpeed checkpoint, which zero_to_fp32.py makes one file of"
    return text
