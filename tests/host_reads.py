"""Refuses to read a tensor on the host: on a GPU each such read waits for all work before it.

    with no_host_reads():
        optimizer.step()

And refuses to send one from there: a copy of pageable memory may wait, and in a CUDA graph holds
the address of what is gone. Seen on tensors of another device, be it "meta".
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# What Python calls on a tensor, also inside of an operator that is written in Python.
METHODS = ("item", "tolist", "numpy", "cpu", "__bool__", "__int__", "__float__", "__index__")
# What torch calls by itself, as where it takes a 0-d tensor for a number.
READS = ("_local_scalar_dense", "is_nonzero", "equal", "nonzero", "masked_select", "_unique2")


class HostRead(AssertionError):
    """A tensor was read on the host."""


class _Refuse(TorchDispatchMode):
    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        name = function.overloadpacket.__name__
        if function.namespace == "aten" and name in READS:
            raise HostRead(f"aten.{name} waits for the device")
        if name in ("index", "index_put", "index_put_") and any(
            index is not None and index.dtype == torch.bool for index in arguments[1]
        ):
            raise HostRead(f"aten.{name} counts a mask's elements, and waits for the device")
        return function(*arguments, **(options or {}))


@contextlib.contextmanager
def no_host_reads() -> Iterator[None]:
    """Inside, what would wait for a GPU raises HostRead, on tensors of any device."""

    def refusing(name: str):
        def method(tensor, *arguments, **options):
            raise HostRead(f"Tensor.{name} waits for the device")

        return method

    with contextlib.ExitStack() as stack:
        for name in METHODS:
            stack.enter_context(mock.patch.object(torch.Tensor, name, refusing(name)))
        stack.enter_context(_Refuse())
        yield


class _RefuseCopies(TorchDispatchMode):
    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        results = function(*arguments, **(options or {}))
        leaves = tree_leaves((arguments, options, results))
        devices = {leaf.device.type for leaf in leaves if isinstance(leaf, torch.Tensor)}
        name = function.overloadpacket.__name__
        if name in ("_to_copy", "copy_") and devices > {"cpu"}:
            raise HostRead(f"aten.{name} sends what lies on the host")
        return results


@contextlib.contextmanager
def no_host_copies() -> Iterator[None]:
    """Inside, what would send a tensor from the host to another device raises HostRead."""

    def refusing(make):
        def made(*arguments, device=None, **options):
            if device is not None and torch.device(device).type != "cpu":
                raise HostRead(f"torch.{make.__name__} sends what lies on the host")
            return make(*arguments, **options)

        return made

    with contextlib.ExitStack() as stack:
        for make in (torch.tensor, torch.as_tensor):
            stack.enter_context(mock.patch.object(torch, make.__name__, refusing(make)))
        stack.enter_context(_RefuseCopies())
        yield
