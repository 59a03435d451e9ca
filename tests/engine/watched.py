"""What a rank of the watchdog's tests does: steps of one all-reduce, until something goes wrong."""

import ctypes
import os
import signal
import time
from collections.abc import Mapping
from pathlib import Path

import torch
import torch.distributed as dist

from clipfast.engine.failure import fail
from clipfast.engine.launch import current_process
from clipfast.engine.progress import mark
from clipfast.engine.rendezvous import meet, release
from clipfast.engine.watchdog import Watchdog

STEPS = 6


def hold() -> None:
    """Wait for ever in native code, with the interpreter's lock: a lock is taken twice."""
    native, lock = ctypes.PyDLL(None), ctypes.create_string_buffer(64)
    native.pthread_mutex_lock(lock)
    native.pthread_mutex_lock(lock)


def broken() -> None:
    """An exception of this rank's own."""
    raise ValueError("broken here")


HOW = {
    "sleep": lambda: time.sleep(1000),
    "stop": lambda: os.kill(os.getpid(), signal.SIGSTOP),
    "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "exit": lambda: os._exit(7),
    "hold": hold,
    "raise": broken,
    "nothing": lambda: None,
    "guard": lambda: os.kill(_child(), signal.SIGKILL) or time.sleep(1000),
}


def rank(variables: Mapping[str, str], folder: Path, how: str, part: str, patience: float) -> None:
    """Train with the others, and go wrong after some steps.

    Args:
        variables: of the environment.
        folder: for what is printed, and for logs.
        how: of ``HOW``; nothing on the ranks that go on.
        part: of the step that it happens in.
        patience: as of the watchdog.
    """
    number = int(variables["RANK"])
    os.environ.update(variables)
    printed = os.open(folder / f"stderr{number}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(printed, 2)
    process = current_process()
    meeting = meet(process.rank, process.world_size)
    watchdog = Watchdog(process, patience, meeting)
    watchdog.keep_logs(folder / "logs")
    dist.init_process_group("gloo")
    release()
    try:
        for step in range(STEPS):
            for each in ("data", "forward", "update"):
                mark(each, step)
                if step == STEPS - 1 and each == part:
                    HOW[how]()
            dist.all_reduce(torch.ones(1))
    except Exception as error:
        fail(process, error, folder / "logs", watchdog)
        raise
    dist.destroy_process_group()
    watchdog.close()


def _child() -> int:
    """The guard of this process."""
    text = Path(f"/proc/self/task/{os.getpid()}/children").read_text()
    return int(text.split()[0])
