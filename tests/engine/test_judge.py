"""What the watch bears with, on a clock of the test's own; how a process ended; what is removed."""

import mmap
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from clipfast.engine.launch import remove_stale_buffers
from clipfast.watchman.ending import Watched, describe
from clipfast.watchman.judge import Judge, View
from clipfast.watchman.record import SIZE, Place, Record
from clipfast.watchman.report import headline
from clipfast.watchman.stacks import is_waiting, main_thread, telling

JUDGE = Judge(60)
NOW = 1000.0


def view(rank: int, part: str, seconds: float, *, waits: bool = False, state: str = "S", limit=54):
    made = View(rank, "node", 100 + rank, NOW, Place(5, 20, part), NOW - seconds, limit, state)
    made.waits = waits
    return made


def hanging(*views: View) -> list[int]:
    return [each.rank for each in JUDGE.hanging(views, NOW)]


def test_judge_knows_how_long_a_part_takes_after_three_times():
    assert JUDGE.limit(0, 0.0) == JUDGE.limit(2, 100.0) == 600
    assert JUDGE.limit(3, 1.0) == 54
    assert JUDGE.limit(3, 40.0) == 200
    assert JUDGE.limit(3, 500.0) == 600


def test_judge_ends_a_silent_rank_within_a_minute_whatever_the_patience():
    assert [Judge(seconds).silence for seconds in (1, 20, 60, 600)] == [10, 15, 45, 45]
    views = [view(0, "data", 1), view(1, "data", 1)]
    assert JUDGE.silent(views, NOW + 44) is None
    views[0].heard = NOW + 44
    assert JUDGE.silent(views, NOW + 46) is views[1]
    views[1].left = True
    assert JUDGE.silent(views, NOW + 46) is None


def test_judge_names_the_rank_that_others_wait_for():
    waiting = view(0, "update", 58, waits=True)
    assert hanging(waiting, view(1, "data", 55)) == [1]
    assert hanging(waiting, view(1, "data", 50)) == []
    # It compiles, or saves for the first time.
    assert hanging(waiting, view(1, "save", 55, limit=600)) == []
    assert hanging(waiting, view(1, "update", 55, state="T", waits=True)) == [1]


def test_judge_bears_with_ranks_that_all_compute_or_all_wait_for_longer():
    assert hanging(view(0, "forward", 300), view(1, "forward", 300)) == []
    assert hanging(view(0, "forward", 601), view(1, "forward", 602)) == [0, 1]
    both = [view(0, "update", 299, waits=True), view(1, "forward", 299, waits=True)]
    assert hanging(*both) == []
    for each in both:
        each.since = NOW - 301
    assert hanging(*both) == [1]
    assert "all ranks wait in collectives for 301 s, rank 1 on node" in headline(
        JUDGE.hanging(both, NOW), both, NOW
    )


def test_judge_leaves_a_run_alone_that_is_stopped_as_a_whole():
    stopped = [view(rank, "data", 5000, state="T") for rank in range(2)]
    assert not JUDGE.is_worth_a_look(stopped, NOW)
    assert JUDGE.is_worth_a_look([*stopped, view(2, "data", 5000)], NOW)


def test_stacks_tell_the_main_thread_and_whether_it_waits():
    dump = f"""Thread 0x00007f0000000001 (most recent call first):
  File "/lib/python3.11/threading.py", line 1 in wait

Current thread 0x00007f0000000002 (most recent call first):
  File "/x/site-packages/torch/_ops.py", line 882 in redispatch
  File "{__file__}", line LINE in waits_here
  File "/x/site-packages/deepspeed/runtime/engine.py", line 5 in forward
"""
    source = Path(__file__).read_text().splitlines()
    wait = next(n for n, line in enumerate(source, start=1) if line.endswith("work.wait()"))
    frames = main_thread(dump.replace("LINE", str(wait)))
    assert [frame.function for frame in frames] == ["redispatch", "waits_here", "forward"]
    assert is_waiting(frames)
    assert not is_waiting(main_thread(dump.replace("LINE", "1")))
    assert telling(frames)[0] == "torch/_ops.py:882 in redispatch"
    assert telling(frames)[1].endswith(f"test_judge.py:{wait} in waits_here")
    assert main_thread("") == []
    assert not is_waiting([])


def waits_here(work):
    work.wait()


def test_record_is_read_by_another_process_as_it_was_written():
    descriptor = os.memfd_create("record")
    os.ftruncate(descriptor, SIZE)
    ours, theirs = Record(descriptor), Record(descriptor)
    ours.write(Place(7, 12, "backward"))
    ours.pass_through("data", 0.5)
    ours.pass_through("data", 0.25)
    assert theirs.read() == Place(7, 12, "backward")
    assert theirs.past("data") == (2, 0.5)
    assert theirs.past("save") == (0, 0.0)


@pytest.mark.parametrize(
    ("act", "words"),
    [
        ("os.kill(os.getpid(), 9)", "was killed by SIGKILL"),
        ("os.kill(os.getpid(), 11)", "was killed by SIGSEGV"),
        ("os._exit(7)", "ended with status 7"),
    ],
)
def test_watched_process_tells_how_it_ended_before_its_parent_asks(act, words):
    child = subprocess.Popen(
        [sys.executable, "-c", f"import os, sys; sys.stdin.read(); {act}"], stdin=subprocess.PIPE
    )
    watched = Watched(child.pid, os.pidfd_open(child.pid))
    assert not watched.has_ended
    assert watched.state() in "RSD"
    child.stdin.close()
    deadline = time.monotonic() + 20
    while not watched.has_ended and time.monotonic() < deadline:
        time.sleep(0.01)
    assert watched.how_it_ended() == words
    child.wait()


def test_a_kill_for_memory_is_called_one():
    killed = int(signal.SIGKILL)
    assert describe(killed, 0) == "was killed by SIGKILL"
    assert describe(killed, 1).startswith("was killed by SIGKILL: the memory was out")
    assert describe(int(signal.SIGTERM), 1) == "was killed by SIGTERM"


def test_shared_memory_of_runs_that_were_killed_is_removed(tmp_path):
    name = f"deepspeed_allreduce_buffer_{os.getuid()}_127.0.0.1_1_"
    stale, mapped, fresh = (tmp_path / f"{name}{rank}" for rank in range(3))
    for path in (stale, mapped, fresh):
        path.write_bytes(b"0" * 4096)
    others = tmp_path / "deepspeed_allreduce_buffer_99999_127.0.0.1_1_0"
    others.touch()
    for path in (stale, mapped, others):
        os.utime(path, (1, 1))
    with open(mapped, "r+b") as file, mmap.mmap(file.fileno(), 4096):
        remove_stale_buffers(tmp_path)
    assert not stale.exists()
    assert all(path.exists() for path in (mapped, fresh, others))
