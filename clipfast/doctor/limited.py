"""Calls with a limit: one that hangs is left behind in its thread, and the process goes on."""

import queue
import threading
from collections.abc import Callable
from typing import Any


class HangError(Exception):
    """A call took longer than it may."""


class LimitedCalls:
    """Runs one call after the other in a thread of its own, another one after a call that hangs.

    One thread for all: torch's current device and libraries' state belong to a thread.
    """

    def __init__(self) -> None:
        self._begin()

    def call(self, function: Callable[[], Any], seconds: float) -> Any:
        """What the function returns or raises.

        Raises:
            HangError: it did neither in time.
        """
        self._todo.put(function)
        try:
            value, error = self._done.get(timeout=seconds)
        except queue.Empty:
            self._begin()
            raise HangError(f"no answer within {seconds:.0f} s") from None
        if error is not None:
            raise error
        return value

    def _begin(self) -> None:
        self._todo: queue.Queue[Callable[[], Any]] = queue.Queue()
        self._done: queue.Queue[tuple[Any, BaseException | None]] = queue.Queue()
        threading.Thread(
            target=_work, args=(self._todo, self._done), name="clipfast-doctor", daemon=True
        ).start()


def _work(todo: "queue.Queue[Any]", done: "queue.Queue[Any]") -> None:
    while True:
        function = todo.get()
        try:
            done.put((function(), None))
        except BaseException as error:
            done.put((None, error))
