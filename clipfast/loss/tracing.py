"""Callers that bring no plain tensors: torch.func, forward-mode derivatives, meta and fake ones."""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.autograd import forward_ad


def is_transformed(*tensors: Tensor) -> bool:
    """Whether torch.func (grad, vmap, jvp, hessian ...) or forward-mode AD derives what these are
    put into: it needs operations that it knows, and finds none in a fused function."""
    if torch.compiler.is_compiling():
        return False
    active = getattr(torch._C, "_are_functorch_transforms_active", None)
    if active is not None and active():
        return True
    in_forward_mode = getattr(forward_ad, "_current_level", -1) >= 0
    return in_forward_mode and any(forward_ad.unpack_dual(t).tangent is not None for t in tensors)


def holds_values(tensor: Tensor) -> bool:
    """Whether there is something to look at: not in a graph, nor with shapes alone."""
    return not (
        torch.compiler.is_compiling() or tensor.device.type == "meta" or type(tensor) is FakeTensor
    )


def no_autocast(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Switches autocast off where the device knows of it."""
    if device.type == "meta":
        return contextlib.nullcontext()
    return torch.autocast(device.type, enabled=False)


def is_autocast(device: torch.device) -> bool:
    """Whether the caller works under autocast."""
    return device.type != "meta" and torch.is_autocast_enabled(device.type)
