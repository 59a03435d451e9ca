"""This rank's guard: started before anything is built, and heard by a thread until the run ends.

What the guards do stands in ``clipfast.watchman``. Here a rank shares where it is, says how it
leaves, and ends when the run is over for another rank's sake.
"""

import faulthandler
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import clipfast
from clipfast.engine import progress
from clipfast.engine.launch import Process, shared_buffer
from clipfast.engine.rendezvous import Meeting
from clipfast.watchman.guard import Setup
from clipfast.watchman.record import SIZE, Record
from clipfast.watchman.wire import Line, Message

# Of no library that is known to us; those of small numbers are.
_STACKS_SIGNAL = signal.SIGRTMIN + 9
# A rank that has met something itself says so in this time, and is ended after it.
_LAST_WORDS_SECONDS = 3.0
_FLUSH_SECONDS = 1.0


@dataclass(frozen=True)
class Verdict:
    """Why the run ends, where that is not this rank's doing.

    Attributes:
        kind: dead, silent, hang, failed, refused or interrupted.
        text: who it was, and how.
        status: that this rank ends with.
    """

    kind: str
    text: str
    status: int


class Watchdog:
    """The watch over one rank; nothing of it where there is no other rank, or no patience.

    Args:
        process: this rank.
        patience: ``--watchdog-seconds``.
        meeting: of the ranks.
    """

    def __init__(self, process: Process, patience: float, meeting: Meeting) -> None:
        self._line: Line | None = None
        self._guard: subprocess.Popen[bytes] | None = None
        self._is_over = False
        self._heard = threading.Event()
        self._lock = threading.Lock()
        self._verdict: Verdict | None = None
        if process.world_size > 1 and patience > 0:
            if _can_watch():
                self._start(process, patience, meeting)
            elif process.is_main:
                print(
                    "Nobody watches over the ranks: that takes Linux 5.3 or newer, and a container "
                    "that allows pidfd_open",
                    file=sys.stderr,
                    flush=True,
                )
        meeting.close()

    def keep_logs(self, folder: Path) -> None:
        """Where stacks are written to from now on.

        Args:
            folder: of the run's logs.
        """
        self._say(k="logs", folder=str(folder))

    def verdict(self, seconds: float) -> Verdict | None:
        """Why the run ends, as the ranks together know it.

        Args:
            seconds: to wait for it.

        Returns:
            None where it does not end, or nobody knows why.
        """
        if self._line is not None:
            self._heard.wait(seconds)
        return self._verdict

    def leaves(self, kind: str, text: str, status: int, *, spoken: bool = True) -> None:
        """Tell the other ranks that this one ends, and the run with it.

        Args:
            kind: failed, refused or interrupted.
            text: what it has met, behind "rank 3 on node1".
            status: that all are to end with.
            spoken: a person has been told on this host.
        """
        said = {"spoken": socket.gethostname()} if spoken else {}
        self._is_over = True
        self._say(k="leaves", kind=kind, text=text, status=status, **said)

    def close(self) -> None:
        """The run has ended well on this rank."""
        if self._line is None:
            return
        self._is_over = True
        progress.share(None)
        self._say(k="bye")
        assert self._guard is not None
        with suppress(subprocess.TimeoutExpired):
            self._guard.wait(_LAST_WORDS_SECONDS)
            # Not before: a guard that still looks would end this process by its signal.
            faulthandler.unregister(_STACKS_SIGNAL)

    def _start(self, process: Process, patience: float, meeting: Meeting) -> None:
        here, there = socket.socketpair()
        pid = os.pidfd_open(os.getpid())
        record, stacks = os.memfd_create("clipfast-place"), os.memfd_create("clipfast-stacks")
        os.ftruncate(record, SIZE)
        progress.share(Record(record))
        faulthandler.register(_STACKS_SIGNAL, file=stacks, all_threads=True)
        listener = -1 if meeting.listener is None else meeting.listener.fileno()
        setup = Setup(
            rank=process.rank,
            world_size=process.world_size,
            speaks=process.local_rank == 0,
            host=socket.gethostname(),
            pid=os.getpid(),
            process=pid,
            token=meeting.token,
            addresses=meeting.addresses,
            first_host=meeting.first_host,
            patience=patience,
            number=_STACKS_SIGNAL,
            rank_end=there.fileno(),
            record=record,
            stacks=stacks,
            listener=listener,
            remains=[str(shared_buffer(process))],
        )
        passed = [there.fileno(), pid, record, stacks, *([] if listener < 0 else [listener])]
        self._guard = subprocess.Popen(
            # The number is for whoever lists processes.
            [sys.executable, "-m", "clipfast.watchman", str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            pass_fds=passed,
            env={**os.environ, "PYTHONPATH": _python_path()},
            # What a launcher does to the group of its rank, the guard is to see and not to share.
            start_new_session=True,
        )
        assert self._guard.stdin is not None
        self._guard.stdin.write(json.dumps(asdict(setup)).encode())
        self._guard.stdin.close()
        there.close()
        os.close(pid)
        self._line = Line(here)
        threading.Thread(target=self._listen, name="clipfast-watchdog", daemon=True).start()

    def _say(self, **message: Any) -> None:
        if self._line is not None:
            with self._lock:
                self._line.send(**message)

    def _listen(self) -> None:
        assert self._line is not None
        line = self._line
        while line.is_open:
            select.select([line], [], [])
            for message in line.receive():
                self._take(message)
        if self._verdict is None and not self._is_over:
            print(
                f"error: the guard of this rank, process {_pid(self._guard)} on "
                f"{socket.gethostname()}, was killed. The run ends",
                file=sys.stderr,
                flush=True,
            )
            _end(1)

    def _take(self, message: Message) -> None:
        if message["k"] == "bye":
            self._is_over = True
            return
        self._verdict = _verdict(message)
        self._heard.set()
        time.sleep(_LAST_WORDS_SECONDS)
        # The main thread may wait for a rank that is gone, where nothing else reaches it.
        _end(self._verdict.status)


def _can_watch() -> bool:
    try:
        os.close(os.pidfd_open(os.getpid()))
    except (AttributeError, OSError):
        return False
    return True


def _end(status: int) -> None:
    """End here, whatever the main thread waits for. It may hold the lock of what is flushed."""
    flushing = threading.Thread(target=_flush, daemon=True)
    flushing.start()
    flushing.join(_FLUSH_SECONDS)
    os._exit(status)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()


def _verdict(message: Mapping[str, Any]) -> Verdict:
    return Verdict(message["kind"], message["text"], message["status"])


def _python_path() -> str:
    """Where the guard finds this clipfast, wherever this rank found it."""
    home = str(Path(clipfast.__file__).resolve().parents[1])
    return os.pathsep.join(filter(None, (home, os.environ.get("PYTHONPATH", ""))))


def _pid(guard: subprocess.Popen[bytes] | None) -> str:
    return "?" if guard is None else str(guard.pid)
