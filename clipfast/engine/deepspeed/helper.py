"""DeepSpeed's helper on the CPU: a start that was killed while it loaded it stops no later one.

torch before 2.14 marks an extension that is being built with a file, and waits for as long as the
file is there. Who is killed leaves it there, and every later start would wait for ever. torch 2.14
locks the file, which the system undoes, and leaves it there in any case.
"""

import fcntl
import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

_MARK = "lock"
_OURS = "clipfast.lock"
# Who builds on another machine of a shared home cannot be seen; a build takes 40 s.
_STALE_SECONDS = 60.0
_LOOK_SECONDS = 0.2


def load_helper() -> None:
    """Load the helper that ``deepspeed.init_distributed`` asks for, one process at a time."""
    from deepspeed.accelerator import get_accelerator
    from deepspeed.comm.torch import build_shm_op
    from torch.utils.cpp_extension import _get_build_directory

    builder: Any = get_accelerator().create_op_builder("ShareMemCommBuilder")
    if builder is not None:
        load_alone(Path(_get_build_directory(builder.name, False)), build_shm_op)


def load_alone(folder: Path, load: Callable[[], object]) -> None:
    """Load an extension while no other process of clipfast does.

    Args:
        folder: that torch builds it in.
        load: builds it where needed, and loads it.
    """
    descriptor = -1
    # Where no file can be locked, torch's own way remains.
    with suppress(OSError):
        descriptor = os.open(folder / _OURS, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        if _marks_say_who_builds():
            _remove_stale(folder / _MARK)
    try:
        load()
    finally:
        if descriptor >= 0:
            os.close(descriptor)


def _marks_say_who_builds() -> bool:
    """Whether this torch takes the file's existence, and not a lock on it, for a build."""
    from torch.utils import cpp_extension

    return hasattr(cpp_extension, "FileBaton")


def _remove_stale(mark: Path) -> None:
    """Delete torch's mark once nobody here has it open and it is old."""
    with suppress(FileNotFoundError):
        while _is_open(mark) or time.time() - mark.stat().st_mtime < _STALE_SECONDS:
            time.sleep(_LOOK_SECONDS)
        mark.unlink()


def _is_open(path: Path) -> bool:
    """Whether a process of this machine, as far as it can be seen, has a file open."""
    wanted = path.stat()
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            for descriptor in (process / "fd").iterdir():
                with suppress(OSError):
                    found = descriptor.stat()
                    if (found.st_dev, found.st_ino) == (wanted.st_dev, wanted.st_ino):
                        return True
    return False
