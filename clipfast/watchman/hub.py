"""The hub: beside rank 0, it hears the guards of all ranks and tells them how the run ends."""

import selectors
import socket
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from clipfast.watchman.judge import Judge, View
from clipfast.watchman.record import Place
from clipfast.watchman.report import hang_report, headline
from clipfast.watchman.wire import Line, Message

BEAT_SECONDS = 1.0
_TICK_SECONDS = 0.25
# A loop that took so long was held up itself: a stopped machine, a suspended laptop.
_OVERSLEPT = 5.0
# From the call for stacks to the last answer.
_LOOK_SECONDS = 3.0
# One look follows another after so much of the patience.
_LOOK_AGAIN = 0.1
# What several ranks say within this time is one event: a rank dies, and others fail for it.
_GATHER_SECONDS = 0.5
# Guards connect after the ranks have met.
_JOIN_SECONDS = 60.0
_LINGER_SECONDS = 3.0
# Of two that end the run at once, the cause of the other comes first.
_ORDER = ("refused", "dead", "hang", "failed", "interrupted", "silent")


class Hub:
    """Hears and judges, in a thread of rank 0's guard.

    Args:
        listener: that the guards connect to.
        token: that they know.
        world_size: number of ranks.
        patience: ``--watchdog-seconds``.
    """

    def __init__(
        self, listener: socket.socket, token: str, world_size: int, patience: float
    ) -> None:
        self._token = token
        self._world_size = world_size
        self._judge = Judge(patience)
        self._listener = listener
        self._listener.setblocking(False)
        self._selector = selectors.DefaultSelector()
        self._selector.register(listener, selectors.EVENT_READ)
        self._lines: dict[Line, View | None] = {}
        self._views: dict[int, View] = {}
        self._began = self._now = time.monotonic()
        self._beat_at = 0.0
        self._looked_at = float("-inf")
        self._look_ends = float("inf")
        self._causes: list[tuple[float, Message]] = []
        self._verdict: Message | None = None
        self._logs = ""
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="hub", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def finish(self) -> None:
        """Rank 0 is through: tell the others that all is well, and end."""
        self._is_over.set()
        self._thread.join(_LINGER_SECONDS)

    def linger(self) -> None:
        """Rank 0 is dead: wait until the others have been told."""
        self._thread.join(_LINGER_SECONDS)

    def _run(self) -> None:
        while not self._is_over.is_set():
            self._hear()
            if self._verdict is None:
                self._weigh()
            elif all(view is None or view.left for view in self._lines.values()):
                return
            if self._now - self._beat_at >= BEAT_SECONDS:
                self._beat_at = self._now
                self._tell(k="beat")
        self._tell(k="bye")
        for line in list(self._lines):
            line.flush()
            self._drop(line)

    def _hear(self) -> None:
        ready = self._selector.select(_TICK_SECONDS)
        before, self._now = self._now, time.monotonic()
        if self._now - before > _OVERSLEPT:
            for view in self._views.values():
                view.heard += self._now - before
                view.since += self._now - before
        for key, _ in ready:
            if key.fileobj is self._listener:
                with suppress(OSError):
                    line = Line(self._listener.accept()[0])
                    self._lines[line] = None
                    self._selector.register(line, selectors.EVENT_READ)
            else:
                assert isinstance(key.fileobj, Line)
                self._read(key.fileobj)
        for line in self._lines:
            line.flush()

    def _read(self, line: Line) -> None:
        try:
            for message in line.receive():
                self._take(line, message)
        except (ValueError, KeyError, TypeError):
            # Whatever connects to a port: it is none of the guards.
            self._drop(line)
            return
        if not line.is_open:
            self._drop(line)

    def _drop(self, line: Line) -> None:
        view = self._lines.pop(line, None)
        with suppress(KeyError, ValueError):
            self._selector.unregister(line)
        line.close()
        if view is not None and not view.left:
            view.left = True
            self._cause("silent", view, "is gone: its host was restarted, or its guard was killed")

    def _take(self, line: Line, message: Message) -> None:
        view = self._lines.get(line)
        if view is None:
            if message["token"] != self._token:
                raise ValueError("another run's guard")
            view = View(message["rank"], message["host"], message["pid"], self._now)
            view.since = self._now
            self._lines[line] = self._views[view.rank] = view
            return
        view.heard = self._now
        kind = message["k"]
        if kind == "beat":
            self._move(view, message)
        elif kind == "logs":
            self._logs = message["folder"]
        elif kind == "stacks":
            view.frames, view.waits, view.looked = message["frames"], message["waits"], self._now
        elif kind == "leaves":
            view.left = True
            self._cause(message["kind"], view, message["text"], message)
        elif kind == "ended":
            if not view.left:
                view.left = True
                self._cause("dead", view, message["text"])
        elif kind == "bye":
            view.left = True

    def _move(self, view: View, message: Message) -> None:
        place = Place(message["count"], message["step"], message["part"])
        was_stopped = view.is_stopped
        view.state = message["state"]
        view.limit = message["limit"]
        # The time that a process was stopped is none that it took.
        if place.count != view.place.count or (was_stopped and not view.is_stopped):
            view.since = self._now
        view.place = place

    def _cause(self, kind: str, view: View, text: str, more: Mapping[str, Any] = {}) -> None:
        if self._verdict is not None:
            return
        where = f"after step {view.place.step}, in {view.place.part}"
        said = f"{view} {text}" + (f" ({where})" if kind in ("dead", "silent") else "")
        verdict = {"kind": kind, "rank": view.rank, "host": view.host, "text": said, "status": 1}
        verdict |= {key: more[key] for key in ("status", "spoken") if key in more}
        self._causes.append((self._now, verdict))

    def _weigh(self) -> None:
        if self._causes:
            if self._now - self._causes[0][0] > _GATHER_SECONDS:
                self._decide(min((c for _, c in self._causes), key=_importance))
            return
        views = list(self._views.values())
        if len(views) < self._world_size and self._now - self._began > _JOIN_SECONDS:
            missing = [r for r in range(self._world_size) if r not in self._views]
            shown = ", ".join(map(str, missing[:16])) + (" ..." if len(missing) > 16 else "")
            text = f"{len(missing)} ranks never came to the watch: {shown}"
            self._decide({"kind": "silent", "rank": missing[0], "text": text, "status": 1})
        elif found := self._judge.silent(views, self._now):
            seconds = self._now - found.heard
            text = f"is silent for {seconds:.0f} s: its host is down, or the link to it is cut"
            self._cause("silent", found, text)
        elif self._look_ends < float("inf"):
            answered = all(v.left or v.looked >= self._looked_at for v in views)
            if answered or self._now > self._look_ends:
                self._look_ends = float("inf")
                self._judge_hang(views)
        elif (
            self._now - self._looked_at > _LOOK_AGAIN * self._judge.patience
            and self._judge.is_worth_a_look(views, self._now)
        ):
            for view in views:
                view.frames, view.waits = (), False
            self._looked_at, self._look_ends = self._now, self._now + _LOOK_SECONDS
            self._tell(k="look")

    def _judge_hang(self, views: list[View]) -> None:
        hanging = self._judge.hanging(views, self._now)
        if not hanging:
            return
        logs = f"{self._logs}/hang-rank00000.txt and so on" if self._logs else "not written"
        lines = list(hang_report(hanging, views, self._now, logs))
        with suppress(OSError):
            print("\n".join(lines), file=sys.stderr, flush=True)
        text = headline(hanging, views, self._now)
        names = [view.rank for view in hanging]
        self._decide(
            {"kind": "hang", "rank": names[0], "hanging": names, "text": text, "status": 1}
        )

    def _decide(self, verdict: Message) -> None:
        self._verdict = verdict
        self._tell(k="verdict", **verdict)

    def _tell(self, **message: Any) -> None:
        for line, view in self._lines.items():
            if view is not None:
                line.send(**message)


def _importance(verdict: Message) -> int:
    return _ORDER.index(verdict["kind"])
