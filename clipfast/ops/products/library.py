"""Which library multiplies float32 matrices on this CPU.

MKL, to which torch hands them, takes slower instructions on processors that are not Intel's;
oneDNN's block product takes AVX-512 wherever it is. Which one is faster also depends on the shape:
a handful of rows does not repay packing a weight. So they race once in a process, some milliseconds
for each class of shapes, when the first product is made. A run of the engine keeps what was found
in its folder: other libraries round in another order, and a resumed run repeats its bits.

    CLIPFAST_CPU_PRODUCTS=auto      the race (the default)
    CLIPFAST_CPU_PRODUCTS=mkl       torch's own products
    CLIPFAST_CPU_PRODUCTS=onednn    the block product throughout; needs AVX-512
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from clipfast.ops.extension import load_extension

VARIABLE = "CLIPFAST_CPU_PRODUCTS"
MKL, ONEDNN, AUTO = "mkl", "onednn", "auto"
KINDS = ("forward", "grad_input", "grad_weight", "batched")
# The largest numbers of rows of the first two classes; csrc/products/constants.h has them too.
FEW_ROWS, SOME_ROWS = 4, 64
ROW_CLASSES = ("few", "some", "many")
# Rows that stand for a class in the race. `many` is a short caption batch: longer ones, to which
# packing costs less, only favour the block product more.
_ROWS = {"few": 1, "some": 32, "many": 512}
_WIDTH = 512
_ROUNDS = 5
# The block product's bits do not depend on the number of threads, so it wins what is nearly even.
_MARGIN = 0.97


class Libraries(NamedTuple):
    """Who multiplies, by kind of product and class of rows.

    Attributes:
        names: "mkl" or "onednn" by "kind.class", such as "forward.many".
    """

    names: dict[str, str]

    @classmethod
    def all(cls, name: str) -> Libraries:
        """One library throughout."""
        return cls({key: name for key in _KEYS})


_KEYS = tuple(f"{kind}.{rows}" for kind in KINDS for rows in ROW_CLASSES)
_lock = threading.Lock()
_current: Libraries | None = None


def current_libraries() -> Libraries:
    """Who multiplies in this process; chosen now if nothing was multiplied yet.

    Raises:
        ValueError: CLIPFAST_CPU_PRODUCTS names no choice, or one that this processor lacks.
    """
    choose_once()
    assert _current is not None
    return _current


def set_libraries(libraries: Libraries) -> None:
    """Who multiplies from now on.

    Args:
        libraries: from `current_libraries`, here or in an earlier run.

    Raises:
        ValueError: a key or a name is unknown, or a library is not there on this processor.
    """
    global _current
    names = libraries.names
    if set(names) != set(_KEYS) or not set(names.values()) <= {MKL, ONEDNN}:
        raise ValueError(f"expected one of mkl, onednn for each of {', '.join(_KEYS)}; got {names}")
    if ONEDNN in names.values() and not has_onednn():
        raise ValueError(
            "oneDNN's block product of float32 needs AVX-512, which this processor (or "
            "CLIPFAST_CPU_CAPABILITY) does not give"
        )
    _install(libraries)


def has_onednn() -> bool:
    """Whether oneDNN's block product of float32 is there."""
    extension = load_extension()
    return extension is not None and extension.has_float_product


def choose_once() -> None:
    """Decides who multiplies, unless that has been decided.

    Raises:
        ValueError: as for `current_libraries`.
    """
    if _current is not None:
        return
    with _lock:
        if _current is None:
            _install(_choose(os.environ.get(VARIABLE, AUTO)))


def _install(libraries: Libraries) -> None:
    global _current
    extension = load_extension()
    if extension is not None:
        extension.set_libraries([libraries.names[key] == ONEDNN for key in _KEYS])
    _current = libraries


def _choose(wish: str) -> Libraries:
    if wish not in (AUTO, MKL, ONEDNN):
        raise ValueError(f"{VARIABLE}: expected auto, mkl or onednn, got {wish!r}")
    if wish == ONEDNN and not has_onednn():
        raise ValueError(
            f"{VARIABLE}=onednn needs AVX-512, which this processor (or CLIPFAST_CPU_CAPABILITY) "
            "does not give; leave it at auto"
        )
    if wish == MKL or not has_onednn():
        return Libraries.all(MKL)
    return Libraries.all(ONEDNN) if wish == ONEDNN else race()


def race() -> Libraries:
    """Times both libraries on each class of shapes, in turn, and names the faster ones.

    Returns:
        The winners; nothing is changed.
    """
    extension = load_extension()
    assert extension is not None
    before = _current
    # In whatever mode the first product is made: nobody else sees the race's products.
    with _disable_current_modes(), torch.no_grad():
        try:
            names = _fastest(extension)
        finally:
            _install(before or Libraries.all(ONEDNN))
    return Libraries(names)


def _fastest(extension: Any) -> dict[str, str]:
    names = {}
    for key, product in _products().items():
        seconds = {MKL: float("inf"), ONEDNN: float("inf")}
        for _ in range(_ROUNDS):
            for name in (ONEDNN, MKL):
                extension.set_libraries([name == ONEDNN] * len(_KEYS))
                start = time.perf_counter()
                product()
                seconds[name] = min(seconds[name], time.perf_counter() - start)
        names[key] = MKL if seconds[MKL] < _MARGIN * seconds[ONEDNN] else ONEDNN
    return names


def _products() -> dict[str, Callable[[], object]]:
    """One product for each class."""
    # A generator of its own: the user's random numbers stay as they are.
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    linear, backward = torch.ops.clipfast.linear, torch.ops.clipfast.linear_backward
    weight = random(_WIDTH, _WIDTH)
    made: dict[str, Callable[[], object]] = {}
    for name, rows in _ROWS.items():
        x, grad = random(rows, _WIDTH), random(rows, _WIDTH)
        a, b = random(8, rows, 64), random(8, 64, _WIDTH)
        made[f"forward.{name}"] = partial(linear, x, weight, None)
        made[f"grad_input.{name}"] = partial(backward, grad, None, weight, False, False)
        made[f"grad_weight.{name}"] = partial(backward, grad, x, None, False, False)
        made[f"batched.{name}"] = partial(torch.ops.clipfast.bmm, a, b)
    return made
