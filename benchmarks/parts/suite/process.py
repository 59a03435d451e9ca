"""One command in a process group of its own, with a limit, its output in a file."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

_POLL = 0.1
# From the request to end until the group is killed.
GRACE = 2.0
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class Ended:
    """How a command ended.

    Attributes:
        code: Its exit code, negative where a signal ended it.
        seconds: What it took.
        is_cut: Whether its limit ended it.
    """

    code: int
    seconds: float
    is_cut: bool


def run(
    command: Sequence[str],
    log: Path,
    limit: float,
    *,
    cwd: Path,
    environment: Mapping[str, str] | None = None,
    tick: Callable[[float], object] = lambda seconds: None,
) -> Ended:
    """Run a command until it ends or its limit has passed; nothing of its group is left.

    Args:
        command: Arguments of this Python.
        log: File for both of its outputs.
        limit: Seconds.
        cwd: Its working directory.
        environment: Added to this process's; an empty value removes a variable.
        tick: Called about ten times a second, with the seconds so far.
    """
    variables = {**os.environ, "PYTHONUNBUFFERED": "1", **(environment or {})}
    variables = {key: value for key, value in variables.items() if value}
    log.parent.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, *command],
            cwd=cwd,
            env=variables,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=end_with_parent,
        )
        is_cut = False
        try:
            while process.poll() is None:
                seconds = time.monotonic() - began
                if seconds > limit:
                    is_cut = True
                    break
                tick(seconds)
                time.sleep(_POLL)
        finally:
            # Also on an interrupt, and what a part has left behind it when it ended.
            _end_group(process)
    return Ended(process.returncode, time.monotonic() - began, is_cut)


def _end_group(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(GRACE)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def end_with_parent() -> None:
    """A part must not outlive a suite that is killed, nor a rank its part: the machine would be
    measured beside it."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
