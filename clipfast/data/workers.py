"""Worker processes of the commands that prepare data."""

import multiprocessing
import os
from collections.abc import Callable
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from typing import Any

from clipfast.data.storage import register_all, registered


class InlineExecutor(Executor):
    """Runs a task at once in this process: one worker without the start of a process."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Call `fn` now; its result or exception is in the future."""
        future: Future[Any] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future


def make_executor(workers: int | None) -> tuple[Executor, int]:
    """An executor of `workers` processes (default: the cores this process may use).

    Processes are spawned, not forked: DALI and Pillow hold threads and locks that a fork copies in
    whatever state they are. They get a copy of each registered storage.

    Raises:
        ValueError: `workers` is below 1.
    """
    if workers is None:
        workers = len(os.sched_getaffinity(0))
    if workers < 1:
        raise ValueError(f"workers must be at least 1, got {workers}; leave it out for all cores")
    if workers == 1:
        return InlineExecutor(), 1
    pool = ProcessPoolExecutor(
        workers, multiprocessing.get_context("spawn"), register_all, (registered(),)
    )
    return pool, workers
