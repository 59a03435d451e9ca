"""What guard, hub and rank make of single messages, without processes."""

import errno
import os
import selectors
import socket
import threading
import time

import pytest

from clipfast.engine import watchdog
from clipfast.engine.launch import current_process
from clipfast.engine.rendezvous import Meeting
from clipfast.engine.watchdog import Watchdog
from clipfast.watchman.guard import Guard, Setup
from clipfast.watchman.hub import Hub
from clipfast.watchman.record import SIZE
from clipfast.watchman.wire import Line
from tests.engine.plans import plan


def guard_of(rank_end: socket.socket, port: int | None = None) -> Guard:
    """The guard of this process as rank 1, whose hub is asked for at a port, or is there."""
    record, stacks = os.memfd_create("place"), os.memfd_create("stacks")
    os.ftruncate(record, SIZE)
    return Guard(
        Setup(
            rank=1,
            world_size=2,
            speaks=True,
            host="node1",
            pid=os.getpid(),
            process=os.pidfd_open(os.getpid()),
            token="",
            addresses=[] if port is None else [("127.0.0.1", port)],
            first_host="node0",
            patience=60.0,
            number=0,
            rank_end=rank_end.detach(),
            record=record,
            stacks=stacks,
            listener=-1,
            remains=[],
        )
    )


def test_guard_hears_the_hub_end_well_and_lets_its_rank_finish(capsys):
    """The goodbye and the end of the connection come at once."""
    rank, rank_end = socket.socketpair()
    hub, hub_end = socket.socketpair()
    guard = guard_of(rank_end)
    guard._line = Line(hub_end)
    last = Line(hub)
    last.send(k="bye")
    last.close()
    with selectors.DefaultSelector() as selector:
        for each in (guard._rank, guard._watched, guard._line):
            selector.register(each, selectors.EVENT_READ)
        assert not guard._goes_on(selector)
    assert [message["k"] for message in Line(rank).receive()] == ["bye"]
    assert capsys.readouterr().err == ""


def test_guard_that_comes_after_a_short_run_says_nothing(capsys):
    rank, rank_end = socket.socketpair()
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    guard = guard_of(rank_end, port)
    line = Line(rank)
    line.send(k="logs", folder="somewhere")
    line.send(k="bye")
    guard._connect()
    assert guard._left
    assert line.receive() == []
    assert capsys.readouterr().err == ""


def test_guard_that_comes_late_passes_on_what_its_rank_has_said():
    rank, rank_end = socket.socketpair()
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    guard = guard_of(rank_end, port)
    Line(rank).send(k="leaves", text="why")
    connecting = threading.Thread(target=guard._connect)
    connecting.start()
    time.sleep(0.6)
    with socket.create_server(("127.0.0.1", port)) as server:
        hub = Line(server.accept()[0])
        connecting.join()
        messages = hub.receive()
    assert [message.get("k") for message in messages] == [None, "leaves"]


def test_hub_does_not_count_the_time_that_a_person_stopped_a_rank():
    hub = Hub(socket.create_server(("127.0.0.1", 0)), "", 1, 60.0)
    line = Line(socket.socketpair()[0])
    hub._lines[line] = None
    hub._now = 0.0
    hub._take(line, {"token": "", "rank": 0, "host": "laptop", "pid": 1})
    beat = {"k": "beat", "count": 7, "step": 3, "part": "forward", "limit": 54.0}
    for now, state, since in ((1.0, "R", 1.0), (9.0, "T", 1.0), (900.0, "T", 1.0)):
        hub._now = now
        hub._take(line, {**beat, "state": state})
        assert hub._views[0].since == since
    # It goes on: a step takes as long as it does.
    hub._now = 901.0
    hub._take(line, {**beat, "state": "R"})
    assert hub._views[0].since == 901.0
    assert not hub._judge.is_worth_a_look(hub._views.values(), 950.0)
    assert hub._judge.is_worth_a_look(hub._views.values(), 956.0)


class Buffered:
    """A stream that keeps what it is given until it is flushed."""

    def __init__(self) -> None:
        self.flushed = False

    def flush(self) -> None:
        self.flushed = True


def test_a_rank_that_is_ended_for_another_leaves_no_line_unwritten(monkeypatch):
    out = Buffered()
    monkeypatch.setattr(watchdog.sys, "stdout", out)
    monkeypatch.setattr(watchdog, "_LAST_WORDS_SECONDS", 0.0)

    def end(status: int) -> None:
        raise SystemExit(status)

    monkeypatch.setattr(watchdog.os, "_exit", end)
    watched = Watchdog(current_process(), 60.0, Meeting())
    with pytest.raises(SystemExit, match="3"):
        watched._take({"k": "verdict", "kind": "dead", "text": "rank 1 is dead", "status": 3})
    assert out.flushed


def test_a_kernel_that_cannot_watch_ends_no_run(monkeypatch, capsys):
    def missing(pid: int) -> int:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(os, "pidfd_open", missing)
    for rank in range(2):
        process = plan(ranks=2, rank=rank).process
        watched = Watchdog(process, 60.0, Meeting("token", [("localhost", 1)]))
        assert watched.verdict(0) is None
        watched.close()
    assert capsys.readouterr().err.count("Nobody watches over the ranks") == 1
