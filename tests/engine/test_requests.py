"""Signals, minutes and failed saves become requests that all ranks agree on."""

import os
import signal

import pytest
import torch

from clipfast.engine import requests
from clipfast.engine.requests import Request, Requests
from tests.engine.plans import plan
from tests.ranks import run_ranks


@pytest.fixture
def asked():
    before = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)}
    made = Requests(plan().process, every_minutes=0)
    made.listen()
    yield made
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGUSR1"])
def test_requests_stop_on_each_signal_at_the_next_step(asked, name):
    assert asked.agree() == Request.GO_ON
    os.kill(os.getpid(), signal.Signals[name])
    assert asked.agree() == Request.STOP
    assert asked.signal_name == name


def test_requests_take_one_ctrl_c_from_terminal_and_launcher_and_a_second_as_meant(
    asked, monkeypatch
):
    os.kill(os.getpid(), signal.SIGINT)
    os.kill(os.getpid(), signal.SIGTERM)
    os.kill(os.getpid(), signal.SIGINT)
    assert asked.agree() == Request.STOP
    monkeypatch.setattr(requests, "_IMPATIENT_SECONDS", 0.0)
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)


def test_requests_end_at_once_where_everything_is_written(asked):
    assert asked.end_at_once() == Request.GO_ON
    with pytest.raises(SystemExit) as ended:
        os.kill(os.getpid(), signal.SIGTERM)
    assert ended.value.code == requests.INTERRUPTED


def test_requests_tell_of_a_signal_that_came_before_everything_was_written(asked):
    os.kill(os.getpid(), signal.SIGTERM)
    assert asked.end_at_once() == Request.STOP


def test_requests_save_by_the_minute_and_again_after_a_failure(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(requests.time, "monotonic", lambda: clock[0])
    asked = Requests(plan().process, every_minutes=10)
    clock[0] = 599
    assert asked.agree() == Request.GO_ON
    clock[0] = 600
    assert asked.agree() == Request.SAVE
    asked.failed()
    assert asked.agree() == Request.GO_ON
    clock[0] = 600 + requests.RETRY_SECONDS
    assert asked.agree() == Request.SAVE
    asked.saved()
    assert asked.agree() == Request.GO_ON


def test_requests_on_several_gpus_forget_a_save_that_was_under_way_when_it_was_made():
    shared = requests._Shared(plan(ranks=2).process)
    event = type("Event", (), {"synchronize": lambda self: None})()
    for forgotten, arrives in ((Request.SAVE, Request.GO_ON), (Request.STOP, Request.SAVE)):
        shared._under_way = (torch.tensor([int(Request.SAVE), -3, -4]), event)
        shared.forget(forgotten)
        assert shared._arrived(3) == [arrives, -3, -4]
    # One that comes later counts again.
    assert shared._arrived(3) == [Request.SAVE, -3, -4]


def test_requests_leave_what_is_long_between_two_batches(asked):
    asked.leave_if_stopped()
    os.kill(os.getpid(), signal.SIGTERM)
    with pytest.raises(requests.StopAsked):
        asked.leave_if_stopped()
    # It is still to be acted on by who has left.
    assert asked.agree() == Request.STOP


def _stop_one() -> list[tuple[int, int, int]]:
    import torch.distributed as dist

    asked = Requests(plan(ranks=2, rank=dist.get_rank()).process, every_minutes=0)
    asked.listen()
    rank = dist.get_rank()
    first = int(asked.agree(progress=2 + rank, sent=7 - rank))
    found = [(first, asked.least_progress, asked.least_sent)]
    if rank == 1:
        os.kill(os.getpid(), signal.SIGTERM)
    second = int(asked.agree(progress=5))
    return [*found, (second, asked.least_progress, asked.least_sent)]


def test_requests_of_one_rank_and_the_least_progress_reach_all_in_the_same_step():
    assert run_ranks(2, _stop_one) == [[(Request.GO_ON, 2, 6), (Request.STOP, 5, 0)]] * 2
