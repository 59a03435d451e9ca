"""CUDA graphs of what is timed, checked against eager launches before they are.

A small case takes as long as the host needs to launch it. A replay launches everything at once, so
that the device's own time is seen. A replay does what was captured, with the same tensors at the
same places; what a function draws or counts on the host would stand still in it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

WARMUP = 2
# Of results that a replay may sum in another order, in units in the last place of their type.
SLACK = 8.0

Function = Callable[[], Any]


class Recorded(NamedTuple):
    """What a recorder makes of a function.

    Attributes:
        replay: Does again what was recorded.
        results: What the function returned; a replay overwrites its tensors.
    """

    replay: Callable[[], None]
    results: Any


Recorder = Callable[[Function], Recorded]


def record_cuda_graph(function: Function) -> Recorded:
    """Capture a function on the current device, after runs that warm it up.

    Raises:
        RuntimeError: it waits for the device, or cannot be captured for another reason.
    """
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARMUP):
            function()
        # Found before the capture, which torch does not recover from where it is broken off.
        mode = torch.cuda.get_sync_debug_mode()
        torch.cuda.set_sync_debug_mode("error")
        try:
            function()
        finally:
            torch.cuda.set_sync_debug_mode(mode)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = function()
    return Recorded(graph.replay, results)


def recorder_of(device: torch.device) -> Recorder | None:
    """Who records on a device; nobody but on CUDA."""
    return record_cuda_graph if device.type == "cuda" else None


def checked_replay(
    function: Function, record: Recorder, changes: Sequence[Tensor] = ()
) -> Callable[[], None]:
    """Record a function, and compare a replay with an eager run from the same beginning.

    Args:
        function: Returns tensors, in whatever they are nested.
        record: Records it.
        changes: Tensors that a run changes, as a step its weights and states. They are left as
            they were found.

    Returns:
        The replay.

    Raises:
        AssertionError: A replay gives something else than an eager run.
        RuntimeError: The function cannot be captured; the error is torch's own.
    """
    before = [tensor.detach().clone() for tensor in changes]

    def restore() -> None:
        for tensor, saved in zip(changes, before, strict=True):
            tensor.detach().copy_(saved)

    try:
        expected = [leaf.detach().clone() for leaf in [*_tensors(function()), *changes]]
        recorded = record(function)
        restore()
        results = _tensors(recorded.results)
        for result in results:
            # What a replay leaves alone is no number.
            result.detach().fill_(float("nan") if result.is_floating_point() else -1)
        recorded.replay()
        found = [*results, *changes]
        assert len(found) == len(expected), "a replay gives another number of tensors"
        for number, (ours, eager) in enumerate(zip(found, expected, strict=True)):
            _compare(ours.detach(), eager, number)
    finally:
        restore()
    return recorded.replay


def _tensors(results: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(results) if isinstance(leaf, Tensor)]


def _compare(ours: Tensor, eager: Tensor, number: int) -> None:
    if not eager.is_floating_point():
        assert torch.equal(ours, eager), f"tensor {number} of a replay differs"
        return
    limit = SLACK * torch.finfo(eager.dtype).eps
    error = (ours.double() - eager.double()).norm() / eager.double().norm().clamp(min=1e-300)
    assert error <= limit, f"tensor {number} of a replay differs by {error.item():.1e}"
