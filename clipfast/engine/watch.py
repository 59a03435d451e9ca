"""End with the launcher: a rank whose launcher was killed saves a checkpoint and stops."""

import os
import re
import signal
import threading
import time
from pathlib import Path

from clipfast.files import process_is_alive

# Programs, modules and scripts; not folders that happen to be called so.
_LAUNCHERS = re.compile(
    r"(.*/)?(deepspeed|torchrun)|clipfast\.torchrun|deepspeed\.launcher\.\w+"
    r"|torch\.distributed\.(run|launch)|.*/(deepspeed/launcher|torch/distributed)/\w+\.py"
)
_EVERY_SECONDS = 1.0
# A rank may wait in a collective for one that is gone already, where no signal reaches it.
_GRACE_SECONDS = 300.0


def end_with_launcher() -> None:
    """Watch the launchers above this process, from a thread; nothing where there is none.

    When one of them dies, this process gets SIGTERM: it saves and stops. What still stands after
    five minutes is ended where it stands.
    """
    watched, parent = launchers(), os.getppid()
    if watched:
        threading.Thread(
            target=_watch, args=(watched, parent), name="clipfast-watch", daemon=True
        ).start()


def launchers() -> list[int]:
    """Processes above this one that are launchers, the nearest first."""
    found, pid = [], os.getppid()
    while pid > 1:
        if any(map(_is_launcher, _command(pid))):
            found.append(pid)
        elif found:
            break
        pid = _parent(pid)
    return found


def _watch(watched: list[int], parent: int) -> None:
    while all(map(process_is_alive, watched)) and os.getppid() == parent:
        time.sleep(_EVERY_SECONDS)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(_GRACE_SECONDS)
    os._exit(1)


def _is_launcher(word: str) -> bool:
    return _LAUNCHERS.fullmatch(word) is not None


def _command(pid: int) -> list[str]:
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return []
    # The program, or the module or script that an interpreter runs; not what it is given.
    return [word.decode(errors="replace") for word in words[:4]]


def _parent(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except (OSError, ValueError, IndexError):
        return 0
