"""Read a pickle of numbers, texts and arrays of bytes. Nothing in it is called.

A pickle names functions and has them called. Here the few names that an array needs lead to
stand-ins that keep what they are given, and every other name is refused.
"""

import io
import pickle
from typing import Any

import numpy as np

_MULTIARRAYS = ("numpy.core.multiarray", "numpy._core.multiarray")


def load_tame(data: bytes) -> Any:
    """What a pickle holds; texts of Python 2 are bytes.

    Args:
        data: the whole file.

    Returns:
        Dicts, lists, numbers, texts, bytes; arrays are ``uint8``.

    Raises:
        ValueError: it is damaged, or asks for anything but those. Says why.
    """
    try:
        return _plain(_Unpickler(io.BytesIO(data), encoding="bytes").load())
    except Exception as error:  # damage raises whatever its bytes happen to mean
        raise ValueError(str(error) or type(error).__name__) from None


class _Kind:
    """Stands for ``numpy.ndarray``, which is passed on and never made."""


class _Element:
    """Stands for ``numpy.dtype``: keeps its name."""

    def __init__(self, name: Any, *_: Any) -> None:
        self.name = name.decode("latin-1") if isinstance(name, bytes) else name

    def __setstate__(self, state: Any) -> None:
        pass


class _Array:
    """Stands for an array: keeps its state."""

    def __init__(self, *_: Any) -> None:
        self.state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def array(self) -> np.ndarray:
        _, shape, element, by_column, data = self.state
        if not isinstance(element, _Element) or element.name not in ("u1", "|u1", "uint8"):
            raise ValueError("an array of it is not of bytes")
        if isinstance(data, str):
            data = data.encode("latin-1")
        return np.frombuffer(data, np.uint8).reshape(shape, order="F" if by_column else "C")


def _encode(text: str, encoding: Any) -> bytes:
    """How Python 3 writes bytes for Python 2."""
    if encoding not in ("latin1", b"latin1"):
        raise ValueError(f"it asks for the encoding {encoding!r}")
    return text.encode("latin-1")


_STAND_INS = {
    **{(module, "_reconstruct"): _Array for module in _MULTIARRAYS},
    ("numpy", "ndarray"): _Kind,
    ("numpy", "dtype"): _Element,
    ("_codecs", "encode"): _encode,
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _STAND_INS:
            raise ValueError(f"it asks for {module}.{name}, which no archive of images needs")
        return _STAND_INS[module, name]


def _plain(value: Any) -> Any:
    if isinstance(value, _Array):
        return value.array()
    if isinstance(value, dict):
        return {_key(key): _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return value


def _key(key: Any) -> Any:
    return key.decode("latin-1") if isinstance(key, bytes) else key
