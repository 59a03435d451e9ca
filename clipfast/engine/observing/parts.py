"""Seconds of each phase of a step: by the host's clock on a CPU, by events on a GPU."""

import time
from typing import Any

import torch


class PartTimer:
    """Listens to one step. Nothing waits for the device before ``seconds``.

    Args:
        device: that computes.
    """

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._marks: list[tuple[str, Any]] = []

    def enter(self, phase: str) -> None:
        """See ``Listener``."""
        self._marks.append((phase, self._now()))

    def seconds(self) -> dict[str, float]:
        """Of each phase that the step had; waits for the device."""
        found: dict[str, float] = {}
        if self._on_gpu and self._marks:
            self._marks[-1][1].synchronize()
        for (phase, began), (_, ended) in zip(self._marks, self._marks[1:], strict=False):
            took = began.elapsed_time(ended) / 1e3 if self._on_gpu else ended - began
            if phase:
                found[phase] = found.get(phase, 0.0) + took
        return found

    def _now(self) -> Any:
        if not self._on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event
