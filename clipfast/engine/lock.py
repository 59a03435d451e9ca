"""One live run per name: a lock that dies with its holder, and tells who that is."""

import fcntl
import json
import os
import socket
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from clipfast.files import process_is_alive

BEAT_SECONDS = 5.0
# A holder of another machine that lets so many beats pass is dead.
_MISSED = 3


class Held(RuntimeError):
    """Another run holds the lock; the message says which."""


class Lock:
    """A lock on a path, held from ``acquire`` to ``release`` or to the end of the process.

    ``flock`` decides between processes of one machine, and between machines where the file system
    passes it on. Where it has no locks, or keeps them to each machine, the file's content decides:
    host, pid and a number that the holder counts up every five seconds. A start that finds another
    machine's content waits for three beats to see whether it is still counted; clocks are not
    compared.

    Args:
        path: of a small file; its folder exists.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor = -1
        self._beat = 0
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None

    def acquire(self) -> None:
        """Take it.

        Raises:
            Held: a live run has it.
            OSError: the file cannot be written.
        """
        self._descriptor = self._open()
        try:
            locked = self._flock()
            self._require_dead(self._content(), locked)
            self._write()
            if not locked:
                # Two that find nobody both write, and the second one stays.
                time.sleep(1.0)
                if not self.is_held:
                    raise Held(_describe(self.path, self._content()))
        except BaseException:
            self._close()
            raise
        self._stopped.clear()
        self._thread = threading.Thread(target=self._count, name="clipfast-lock", daemon=True)
        self._thread.start()

    def require(self) -> None:
        """Take it again where its file was deleted or replaced while it was held.

        Raises:
            Held: another run took it meanwhile.
            OSError: the file cannot be written.
        """
        if not self.is_held:
            self._stop()
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.acquire()

    @property
    def is_held(self) -> bool:
        """The file is still in its place and names this process."""
        return self._is_in_place() and self._is_mine(self._content())

    def release(self) -> None:
        """Give it back; its file goes."""
        if self._descriptor < 0:
            return
        if self.is_held:
            with suppress(OSError):
                self.path.unlink()
        self._stop()

    def _open(self) -> int:
        # Not passed on to processes that this one starts: they would hold the lock after its end.
        return os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)

    def _flock(self) -> bool:
        """Whether the file system locks."""
        while True:
            try:
                fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise Held(_describe(self.path, self._content())) from None
            except OSError:
                return False
            if self._is_in_place():
                return True
            # Its holder deleted it between the two calls.
            os.close(self._descriptor)
            self._descriptor = self._open()

    def _require_dead(self, holder: dict[str, Any], locked: bool) -> None:
        if not holder or (locked and _machine(holder) == _here()):
            return
        if _machine(holder) == _here():
            if _runs(holder):
                raise Held(_describe(self.path, holder))
            return
        for _ in range(_MISSED * 5):
            time.sleep(BEAT_SECONDS / 5)
            if self._content().get("beat") != holder.get("beat"):
                raise Held(_describe(self.path, holder))

    def _content(self) -> dict[str, Any]:
        """What is in the file; empty where nobody held it or it is no lock's."""
        try:
            # Opened anew: a network file system may answer from memory what is open here.
            found = json.loads(self.path.read_bytes()[:4096])
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def _is_mine(self, holder: dict[str, Any]) -> bool:
        mine = (_here(), os.getpid(), _started(os.getpid()))
        return (_machine(holder), holder.get("pid"), holder.get("started")) == mine

    def _is_in_place(self) -> bool:
        try:
            there, held = os.stat(self.path), os.fstat(self._descriptor)
        except OSError:
            return False
        return (there.st_dev, there.st_ino) == (held.st_dev, held.st_ino)

    def _write(self) -> None:
        self._beat += 1
        content = {
            "host": socket.gethostname(),
            "system": _system(),
            "pid": os.getpid(),
            "started": _started(os.getpid()),
            "beat": self._beat,
        }
        # One size, so that a reader never sees the end of a longer content before.
        os.pwrite(self._descriptor, json.dumps(content).ljust(512).encode() + b"\n", 0)
        # Other machines see what has left this one.
        os.fsync(self._descriptor)

    def _count(self) -> None:
        while not self._stopped.wait(BEAT_SECONDS):
            # A full disk costs no run: who holds it was written before.
            with suppress(OSError):
                self._write()

    def _stop(self) -> None:
        self._stopped.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self._close()

    def _close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def _describe(path: Path, holder: dict[str, Any]) -> str:
    who = f"process {holder['pid']} on {holder['host']}" if {"pid", "host"} <= holder.keys() else ""
    return f"{who or 'another process'} ({path})"


def _machine(holder: dict[str, Any]) -> tuple[Any, Any]:
    return holder.get("host"), holder.get("system")


def _here() -> tuple[str, str]:
    return socket.gethostname(), _system()


def _system() -> str:
    """Tells machines and containers of one host name apart: process numbers count within these."""
    parts = []
    with suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
    with suppress(OSError):
        parts.append(os.readlink("/proc/self/ns/pid"))
    return " ".join(parts)


def _runs(holder: dict[str, Any]) -> bool:
    pid = holder.get("pid")
    if not isinstance(pid, int) or not process_is_alive(pid):
        return False
    # The number may have gone to another process since.
    return holder.get("started") == _started(pid)


def _started(pid: int) -> str:
    """When a process began, in ticks since the machine did; empty where that cannot be known."""
    try:
        # The name in parentheses may itself hold spaces and parentheses.
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""
