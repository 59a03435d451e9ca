"""What ranks ask of each other between steps: save a checkpoint, or stop."""

import signal
import time
from enum import IntEnum

import torch
import torch.distributed as dist

from clipfast.engine.launch import Process


class Request(IntEnum):
    """The larger one counts where ranks differ."""

    GO_ON = 0
    SAVE = 1
    STOP = 2


class Requests:
    """Signals to stop, and the minutes between checkpoints.

    Args:
        process: this rank.
        every_minutes: between checkpoints; 0 asks for none by time.
    """

    def __init__(self, process: Process, every_minutes: float) -> None:
        self._device = process.device
        self._every_minutes = every_minutes
        self._signalled = False
        self._saved_at = time.monotonic()

    def listen(self) -> None:
        """Take SIGTERM and SIGUSR1, as torchrun and schedulers send them, for a request to stop."""
        for number in (signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, self._on_signal)

    def saved(self) -> None:
        """A checkpoint was saved now."""
        self._saved_at = time.monotonic()

    def agree(self) -> Request:
        """The largest request of any rank, since clocks differ and signals reach ranks one by one.
        A collective."""
        request = Request.GO_ON
        if 0 < self._every_minutes <= (time.monotonic() - self._saved_at) / 60:
            request = Request.SAVE
        if self._signalled:
            request = Request.STOP
        shared = torch.tensor(int(request), device=self._device)
        dist.all_reduce(shared, op=dist.ReduceOp.MAX)
        return Request(int(shared.item()))

    def _on_signal(self, number: int, frame: object) -> None:
        self._signalled = True
