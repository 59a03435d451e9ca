"""How a process ended, known to one that is not its parent; Linux."""

import fcntl
import os
import select
import signal
import struct
import time
from contextlib import suppress
from pathlib import Path

# ioctl PIDFD_GET_INFO of linux/pidfd.h, since Linux 6.13; the exit status since 6.15.
_GET_INFO = 0xC040FF0B
_INFO_EXIT = 1 << 3
_INFO = struct.Struct("<QQ11Ii")
_LOOKS = 20


class Watched:
    """A process whose end is waited for.

    Args:
        pid: of the process.
        descriptor: of ``os.pidfd_open``, while it lived.

    Attributes:
        pid: as given.
    """

    def __init__(self, pid: int, descriptor: int) -> None:
        self.pid = pid
        self._descriptor = descriptor
        self._memory_kills = _memory_kills(pid)

    def fileno(self) -> int:
        """Readable once it has ended."""
        return self._descriptor

    @property
    def has_ended(self) -> bool:
        """Whether it runs no more."""
        return bool(select.select([self._descriptor], [], [], 0)[0])

    def state(self) -> str:
        """The letter that ``ps`` shows: R runs, S sleeps, D waits for a disk, T is stopped."""
        return (_stat(self.pid) or ["?"])[0]

    def kill(self) -> None:
        """End it where it stands."""
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._descriptor, signal.SIGKILL)

    def send(self, number: int) -> None:
        """Send it a signal."""
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._descriptor, number)

    def how_it_ended(self) -> str:
        """For a person, once it has: a signal, a status, the memory; or that nobody knows."""
        for _ in range(_LOOKS):
            status = self._wait_status()
            if status is not None:
                return describe(status, _memory_kills(self.pid) - self._memory_kills)
            time.sleep(0.01)
        return "ended without a word"

    def _wait_status(self) -> int | None:
        """As ``waitpid`` gives it: before its parent has fetched it, and on new kernels after."""
        fields = _stat(self.pid)
        if fields and fields[0] == "Z":
            with suppress(IndexError, ValueError):
                return int(fields[49])
        buffer = bytearray(_INFO.pack(_INFO_EXIT, *[0] * 13))
        with suppress(OSError):
            fcntl.ioctl(self._descriptor, _GET_INFO, buffer)
            mask, *_, status = _INFO.unpack(buffer)
            if mask & _INFO_EXIT:
                return int(status)
        return None


def describe(status: int, memory_kills: int = 0) -> str:
    """A wait status in words.

    Args:
        status: as ``waitpid`` gives it.
        memory_kills: processes that the kernel ended for their memory meanwhile.
    """
    if not os.WIFSIGNALED(status):
        return f"ended with status {os.waitstatus_to_exitcode(status)}"
    number = os.WTERMSIG(status)
    try:
        name = signal.Signals(number).name
    except ValueError:
        name = f"signal {number}"
    if number == signal.SIGKILL and memory_kills > 0:
        return f"was killed by {name}: the memory was out (the kernel counts {memory_kills} more)"
    return f"was killed by {name}"


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat from the state on; empty where the process is gone."""
    with suppress(OSError):
        # The name in parentheses may itself hold spaces and parentheses.
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return []


def _memory_kills(pid: int) -> int:
    """Processes that the kernel has ended for memory, of the group of a process and of the machine
    as far as they can be seen; a group's members are counted by both."""
    counted = [_counter(Path("/proc/vmstat"))]
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
            _, _, path = line.split(":", 2)
            counted.append(_counter(Path(f"/sys/fs/cgroup{path}/memory.events")))
    return max(counted)


def _counter(path: Path) -> int:
    with suppress(OSError):
        for line in path.read_text().splitlines():
            name, _, number = line.partition(" ")
            if name == "oom_kill":
                return int(number)
    return 0
