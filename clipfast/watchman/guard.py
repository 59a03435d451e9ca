"""The guard: beside each rank, it says where the rank is, how it ended, and ends it when told."""

import os
import selectors
import signal
import socket
import sys
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from clipfast.watchman.ending import Watched
from clipfast.watchman.hub import BEAT_SECONDS, Hub
from clipfast.watchman.judge import Judge
from clipfast.watchman.record import Record
from clipfast.watchman.stacks import is_waiting, main_thread, telling
from clipfast.watchman.wire import Line, Message

_TICK_SECONDS = 0.25
_OVERSLEPT = 5.0
_CONNECT_SECONDS = 3.0
# A rank that was told to end and is still there then is killed.
_GRACE_SECONDS = 10.0
_GRACE_OF_WHO_HANGS = 4.0
# From the end of a rank to the word of the hub.
_WORD_SECONDS = 4.0
# A guard is gone so long after its rank, whatever holds it up.
_OUTLIVES_SECONDS = 15
# A stack is whole once nothing was added for so long.
_WRITTEN_SECONDS = 0.1
_WRITES_SECONDS = 2.0
_IGNORED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


@dataclass(frozen=True)
class Setup:
    """What a guard is started with.

    Attributes:
        rank: that it guards.
        world_size: number of ranks.
        speaks: it prints what the hub decides: one per host.
        host: name of this one.
        pid: of the rank.
        process: descriptor of ``os.pidfd_open`` of it.
        token: that guards and hub know.
        addresses: of the hub, to be tried in turn.
        first_host: name of the host that the hub is on.
        patience: ``--watchdog-seconds``.
        number: of the signal at which the rank writes its stacks.
        rank_end: descriptor of the socket to the rank.
        record: descriptor of what the rank shares.
        stacks: descriptor of the file that the stacks go to.
        listener: descriptor of the hub's socket; -1 where the hub is elsewhere.
        remains: files that the rank may leave where it is killed.
    """

    rank: int
    world_size: int
    speaks: bool
    host: str
    pid: int
    process: int
    token: str
    addresses: list[tuple[str, int]]
    first_host: str
    patience: float
    number: int
    rank_end: int
    record: int
    stacks: int
    listener: int
    remains: list[str]


class Guard:
    """See above.

    Args:
        setup: what it was started with.
    """

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        self._watched = Watched(setup.pid, setup.process)
        self._record = Record(setup.record)
        self._rank = Line(socket.socket(fileno=setup.rank_end))
        self._judge = Judge(setup.patience)
        self._hub: Hub | None = None
        if setup.listener >= 0:
            listener = socket.socket(fileno=setup.listener)
            self._hub = Hub(listener, setup.token, setup.world_size, setup.patience)
        self._line: Line | None = None
        self._logs: Path | None = None
        self._heard = self._beat_at = 0.0
        # The rank has said goodbye; the hub has decided.
        self._left = self._decided = False
        self._kill_at = float("inf")
        self._leave_at = float("inf")

    def run(self) -> None:
        """Guard until the rank has ended."""
        for number in _IGNORED:
            signal.signal(number, signal.SIG_IGN)
        if self._hub is not None:
            self._hub.start()
        self._connect()
        with selectors.DefaultSelector() as selector:
            selector.register(self._rank, selectors.EVENT_READ)
            selector.register(self._watched, selectors.EVENT_READ)
            if self._line is not None:
                selector.register(self._line, selectors.EVENT_READ)
            while self._goes_on(selector):
                pass
        self._clean()
        if self._hub is not None and not self._left:
            self._hub.linger()

    def _goes_on(self, selector: selectors.BaseSelector) -> bool:
        before = time.monotonic()
        ready = {key.fileobj for key, _ in selector.select(_TICK_SECONDS)}
        now = time.monotonic()
        if now - before > _OVERSLEPT:
            self._heard += now - before
        if self._rank in ready:
            for message in self._rank.receive():
                self._from_rank(message)
            if not self._rank.is_open:
                selector.unregister(self._rank)
        if self._left:
            return False
        if self._line is not None and self._line in ready:
            self._from_hub(self._line, now)
            if self._left:
                # The hub ends with its goodbye: that it is gone then is no news.
                return False
            if not self._line.is_open:
                selector.unregister(self._line)
                self._line = None
        if self._line is not None:
            self._beat(self._line, now)
        if self._line is None and not self._decided:
            self._decide({"kind": "silent", "text": f"{self._at_the_hub()} is gone"}, now)
        if now > self._kill_at:
            self._watched.kill()
        if self._watched in ready:
            selector.unregister(self._watched)
            self._ended(now)
        return now < self._leave_at

    def _at_the_hub(self) -> str:
        return f"rank 0, which rank {self._setup.rank} on {self._setup.host} watches,"

    def _connect(self) -> None:
        setup = self._setup
        deadline = time.monotonic() + min(setup.patience, 60.0)
        reason = ""
        said: list[Message] = []
        while True:
            for address in setup.addresses:
                try:
                    connection = socket.create_connection(address, timeout=_CONNECT_SECONDS)
                except OSError as error:
                    reason = f"{address[0]}:{address[1]}: {error.strerror or error}"
                    continue
                self._line = Line(connection)
                who = {"rank": setup.rank, "host": setup.host, "pid": setup.pid}
                self._line.send(token=setup.token, **who)
                for message in said:
                    self._line.send(**message)
                self._heard = time.monotonic()
                return
            for message in self._rank.receive():
                self._from_rank(message)
                said.append(message)
            if self._left:
                # A short run is over before this guard has come to it.
                return
            if time.monotonic() > deadline or self._watched.has_ended:
                self._decide(
                    {
                        "kind": "refused",
                        "status": 2,
                        "speaks": True,
                        "text": f"rank {setup.rank} on {setup.host} does not reach the watch of "
                        f"rank 0 ({reason}). Ports between the nodes have to be open, as for NCCL "
                        "and gloo. --watchdog-seconds 0 does without the watch",
                    },
                    time.monotonic(),
                )
                return
            time.sleep(_TICK_SECONDS)

    def _say_where(self, line: Line) -> None:
        place = self._record.read()
        line.send(
            k="beat",
            count=place.count,
            step=place.step,
            part=place.part,
            limit=self._judge.limit(*self._record.past(place.part)),
            state=self._watched.state(),
        )

    def _beat(self, line: Line, now: float) -> None:
        line.flush()
        if now - self._beat_at >= BEAT_SECONDS:
            self._beat_at = now
            self._say_where(line)
        if not self._decided and now - self._heard > self._judge.silence:
            seconds = now - self._heard
            text = (
                f"nothing was heard on {self._setup.host} from rank 0 on "
                f"{self._setup.first_host} for {seconds:.0f} s: its host is down, or the link to "
                "it is cut"
            )
            self._decide({"kind": "silent", "text": text}, now)

    def _from_hub(self, line: Line, now: float) -> None:
        for message in line.receive():
            self._heard = now
            if message["k"] == "verdict":
                self._decide(message, now)
            elif message["k"] == "look":
                self._look(line)
            elif message["k"] == "bye":
                self._left = True
                self._rank.send(k="bye")

    def _from_rank(self, message: Message) -> None:
        if message["k"] == "logs":
            self._logs = Path(message["folder"])
        if message["k"] == "bye":
            self._left = True
        if self._line is not None:
            self._line.send(**message)
        if self._left and self._hub is not None:
            self._hub.finish()

    def _look(self, line: Line) -> None:
        """Have the rank write its stacks, keep them all and tell the main thread's."""
        # The hub is not to judge by a state of before.
        self._say_where(line)
        text = self._stacks()
        frames = main_thread(text)
        line.send(k="stacks", frames=telling(frames), waits=is_waiting(frames))
        if self._logs is not None:
            # A disk may be what hangs.
            threading.Thread(target=self._keep, args=(text,), daemon=True).start()

    def _stacks(self) -> str:
        before = size = os.fstat(self._setup.stacks).st_size
        self._watched.send(self._setup.number)
        deadline = time.monotonic() + _WRITES_SECONDS
        while time.monotonic() < deadline:
            time.sleep(_WRITTEN_SECONDS)
            last, size = size, os.fstat(self._setup.stacks).st_size
            if size == last > before:
                break
        return os.pread(self._setup.stacks, size - before, before).decode(errors="replace")

    def _keep(self, text: str) -> None:
        if self._logs is None:
            return
        place, state = self._record.read(), self._watched.state()
        head = (
            f"rank {self._setup.rank} on {self._setup.host}, process {self._setup.pid}: after step "
            f"{place.step}, {place.part}, state {state}, {time.strftime('%Y-%m-%dT%H:%M:%S%z')}\n"
        )
        with suppress(OSError):
            self._logs.mkdir(exist_ok=True)
            path = self._logs / f"hang-rank{self._setup.rank:05d}.txt"
            path.write_text(head + (text or "no stack: the process did not answer\n"))

    def _decide(self, verdict: Message, now: float) -> None:
        """The run is over: say so once per host, tell the rank, and see it end."""
        if self._decided:
            return
        self._decided = True
        self._rank.send(**{"status": 1, **verdict, "k": "verdict"})
        hangs = self._setup.rank in verdict.get("hanging", ())
        self._kill_at = now + (_GRACE_OF_WHO_HANGS if hangs else _GRACE_SECONDS)
        if self._watched.state() in ("T", "t"):
            self._kill_at = now
        if self._watched.has_ended:
            self._leave_at = min(self._leave_at, now)
        speaks = self._setup.speaks or verdict.get("speaks", False)
        if speaks and verdict.get("spoken") != self._setup.host:
            with suppress(OSError):
                head = "" if verdict["kind"] == "interrupted" else "error: "
                print(f"{head}{verdict['text']}. The run ends", file=sys.stderr, flush=True)

    def _ended(self, now: float) -> None:
        signal.alarm(_OUTLIVES_SECONDS)
        if self._line is not None:
            self._say_where(self._line)
            self._line.send(k="ended", text=self._watched.how_it_ended())
        self._leave_at = now if self._decided else now + _WORD_SECONDS

    def _clean(self) -> None:
        for path in self._setup.remains:
            with suppress(OSError):
                os.unlink(path)
