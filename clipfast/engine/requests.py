"""What ranks ask of each other after every step and every batch of an evaluation: save a
checkpoint, or stop."""

import signal
import time
from enum import IntEnum
from types import FrameType

import torch
import torch.distributed as dist
from torch import Tensor

from clipfast.engine import progress
from clipfast.engine.launch import Process

# What a wrapper sees of a run that a signal ended, and that can go on: EX_TEMPFAIL of sysexits.h.
INTERRUPTED = 75
# A failed save is tried again after so long.
RETRY_SECONDS = 60.0
# Ctrl-C reaches a rank from the terminal, and once more from its launcher. A person who means it
# waits longer between the two.
_IMPATIENT_SECONDS = 1.0


_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


def end_while_starting() -> None:
    """Until ``Requests.listen``: SIGTERM and SIGUSR1 end the process with the status of an
    interrupted run. There is nothing to save yet."""

    def end(number: int, frame: FrameType | None) -> None:
        raise SystemExit(INTERRUPTED)

    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, end)


class StopAsked(Exception):
    """A signal asks the run to stop, known to all ranks: what is under way is left."""


class Request(IntEnum):
    """The larger one counts where ranks differ."""

    GO_ON = 0
    SAVE = 1
    STOP = 2


class Requests:
    """Signals to stop, the minutes between checkpoints, and saves to be tried again.

    Args:
        process: this rank.
        every_minutes: between checkpoints; 0 asks for none by time.

    Attributes:
        signal_name: of the first signal that this rank got.
        least_progress: of the ranks' saves in the background, as ``agree`` learned it last.
        least_sent: of the ranks' uploads, likewise.
    """

    def __init__(self, process: Process, every_minutes: float) -> None:
        self._shared = _Shared(process)
        self._every_seconds = 60 * every_minutes
        self._saved_at = time.monotonic()
        self._retry_at: float | None = None
        self._signalled_at: float | None = None
        self._ends_at_once = False
        self.signal_name = ""
        self.least_progress = 0
        self.least_sent = 0

    def listen(self) -> None:
        """Take Ctrl-C, SIGTERM and SIGUSR1, as launchers and schedulers send them, for a request to
        stop. A second Ctrl-C ends the process where it stands."""
        for number in _SIGNALS:
            signal.signal(number, self._on_signal)

    def end_at_once(self) -> Request:
        """From now on a signal ends the process where it stands, with the status of an interrupted
        run: all that a run leaves is written. A collective.

        Returns:
            STOP where one of the ranks was asked to stop before.
        """
        # Twice: on several GPUs the first answer is of a step before.
        self._ends_at_once = True
        return max(self.agree(), self.agree())

    def saved(self) -> None:
        """A checkpoint was saved now."""
        self._saved_at = time.monotonic()
        self._retry_at = None
        self._shared.forget(Request.SAVE)

    def failed(self) -> None:
        """A checkpoint could not be saved; it is asked for again after a while."""
        self._retry_at = time.monotonic() + RETRY_SECONDS
        self._shared.forget(Request.SAVE)

    def agree(self, progress: int = 0, sent: int = 0) -> Request:
        """The largest request of any rank, since clocks differ and signals reach ranks one by one.
        Called by every rank after every step; on several GPUs it tells what was asked for a step
        before, and nobody waits.

        Args:
            progress: of this rank's save in the background; the smallest of all ranks is
                ``least_progress`` from then on.
            sent: of this rank's uploads; likewise, ``least_sent``.
        """
        # One collective carries all.
        wanted, missing, unsent = self._shared.largest(int(self._wanted()), -progress, -sent)
        self.least_progress, self.least_sent = -missing, -unsent
        return Request(wanted)

    def leave_if_stopped(self) -> None:
        """Between two batches of something long. A collective, as ``agree``.

        Raises:
            StopAsked: one of the ranks was asked to stop.
        """
        progress.again()
        if self.agree() == Request.STOP:
            raise StopAsked

    def wait(self, seconds: float) -> Request:
        """Wait, all ranks together, or until one of them is asked to stop.

        Args:
            seconds: at most, on each rank's own clock.
        """
        for _ in range(max(1, round(seconds))):
            progress.again()
            if self.agree() == Request.STOP:
                return Request.STOP
            time.sleep(1)
        return Request.GO_ON

    def _wanted(self) -> Request:
        if self._signalled_at is not None:
            return Request.STOP
        now = time.monotonic()
        if self._retry_at is not None:
            return Request.SAVE if now >= self._retry_at else Request.GO_ON
        is_due = 0 < self._every_seconds <= now - self._saved_at
        return Request.SAVE if is_due else Request.GO_ON

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self._ends_at_once:
            # What is left to do then is short, and must not be ended in the middle.
            for each in _SIGNALS:
                signal.signal(each, signal.SIG_IGN)
            raise SystemExit(INTERRUPTED)
        now = time.monotonic()
        again = self._signalled_at is not None and now - self._signalled_at > _IMPATIENT_SECONDS
        if again and number == signal.SIGINT:
            raise KeyboardInterrupt
        if self._signalled_at is None:
            self._signalled_at = now
            self.signal_name = signal.Signals(number).name


class _Shared:
    """The largest of the ranks' numbers, some at a time.

    On GPUs the sum of a step's work would have to be waited for; there numbers are on their way
    while the next step runs.
    """

    def __init__(self, process: Process) -> None:
        self._process = process
        self._under_way: tuple[Tensor, torch.cuda.Event] | None = None
        self._forgotten = -1

    def forget(self, number: int) -> None:
        """What is on its way with this first number was asked for before it was done."""
        self._forgotten = number if self._under_way is not None else -1

    def largest(self, *numbers: int) -> list[int]:
        if self._process.world_size == 1:
            return list(numbers)
        on_gpu = self._process.device.type == "cuda"
        before = self._arrived(len(numbers)) if on_gpu else []
        # Filled on the device: a copy of host memory would wait for it.
        shared = torch.empty(len(numbers), dtype=torch.int64, device=self._process.device)
        for place, number in enumerate(numbers):
            shared[place] = number
        dist.all_reduce(shared, op=dist.ReduceOp.MAX)
        if not on_gpu:
            return [int(number) for number in shared]
        host = torch.empty(len(numbers), dtype=shared.dtype, pin_memory=True)
        host.copy_(shared, non_blocking=True)
        event = torch.cuda.Event()
        event.record()
        self._under_way = (host, event)
        return before

    def _arrived(self, count: int) -> list[int]:
        if self._under_way is None:
            # What nobody has said yet: no request, and no progress.
            return [0] * count
        host, event = self._under_way
        event.synchronize()
        numbers = [int(number) for number in host]
        if numbers[0] == self._forgotten:
            numbers[0] = 0
        self._forgotten = -1
        return numbers
