"""What a process holds: memory, threads, descriptors."""

import gc
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class ProcessUse:
    """What this process holds now.

    Attributes:
        megabytes: of resident memory.
        threads: their number.
        descriptors: open ones.
    """

    megabytes: float
    threads: int
    descriptors: int

    @classmethod
    def now(cls) -> "ProcessUse":
        """Read it from the system."""
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return cls(
            pages * os.sysconf("SC_PAGE_SIZE") / 1e6,
            len(os.listdir("/proc/self/task")),
            len(os.listdir("/proc/self/fd")),
        )


@contextmanager
def without_the_collector() -> Iterator[None]:
    """Nothing is freed in here but by its last reference: what lies in a cycle stays."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def assert_flat(before: ProcessUse, megabytes: float) -> None:
    """No more threads and descriptors than before, and at most some megabytes more."""
    give_up = time.monotonic() + 5
    after = ProcessUse.now()
    # A thread that has ended is listed until the system has taken it down.
    while after.threads > before.threads and time.monotonic() < give_up:
        time.sleep(0.01)
        after = ProcessUse.now()
    assert after.threads <= before.threads, (before, after)
    assert after.descriptors <= before.descriptors, (before, after)
    assert after.megabytes - before.megabytes < megabytes, (before, after)


def assert_flat_when_repeated(visit: Callable[[], None], megabytes: float) -> None:
    """Three visits leave things as they were after the first.

    What leaks does so in every round. A heap that other tests have grown may take a few pages more
    in one.
    """
    visit()
    for attempt in range(3):
        before = ProcessUse.now()
        for _ in range(3):
            visit()
        try:
            return assert_flat(before, megabytes)
        except AssertionError:
            if attempt == 2:
                raise
