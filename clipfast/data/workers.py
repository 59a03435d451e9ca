"""Worker processes of the commands that prepare data."""

import ctypes
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from multiprocessing.connection import wait
from typing import Any

from clipfast.storage import Storage, register_all, registered

PR_SET_PDEATHSIG = 1  # of linux/prctl.h


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
    whatever state they are. They get a copy of each registered storage, and end with this process
    however it ends: a worker waits on a queue that its siblings hold open, and would wait for ever.
    The thread that submits the first tasks has to outlive the executor.

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
        workers, multiprocessing.get_context("spawn"), _begin_worker, (registered(),)
    )
    return pool, workers


def _begin_worker(storages: dict[str, Storage]) -> None:
    _end_with_parent()
    register_all(storages)


def _end_with_parent() -> None:
    """End this worker as soon as the process that started it is gone."""
    parent = multiprocessing.parent_process()
    assert parent is not None, "a worker has a parent"

    def end() -> None:
        wait([parent.sentinel])
        os._exit(1)

    # Notices a parent that is gone by now, too.
    threading.Thread(target=end, name="end with parent", daemon=True).start()
    if sys.platform == "linux":
        # The kernel ends a worker that is inside a decoder, where no thread of Python may run.
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def machine_memory() -> int:
    """Bytes of memory that this machine has."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
