"""Worker processes of index and pack end with the process that started them."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from clipfast.data import workers
from clipfast.files import process_is_alive

SECONDS = 20

SCRIPT = """
    import sys, time
    from clipfast.data.workers import make_executor
    from tests.data.test_workers import {task}

    if __name__ == "__main__":
        pool, _ = make_executor(2)
        tasks = [pool.submit({task}, sys.argv[1]) for _ in range(2)]
        time.sleep(600)
"""


def note(folder: str) -> None:
    Path(folder, str(os.getpid())).touch()
    # Both workers take one.
    time.sleep(1)


def note_and_work(folder: str) -> None:
    note(folder)
    time.sleep(600)


def note_without_the_kernels_help(folder: str) -> None:
    import ctypes

    ctypes.CDLL(None).prctl(workers.PR_SET_PDEATHSIG, 0)
    note_and_work(folder)


def until(condition, seconds: float = SECONDS) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


@pytest.mark.skipif(sys.platform != "linux", reason="prctl is Linux's")
@pytest.mark.parametrize("task", ["note", "note_and_work", "note_without_the_kernels_help"])
def test_workers_end_with_a_parent_that_was_killed(tmp_path, task):
    """Idle or at work, with the kernel's signal and without it."""
    script = tmp_path / "start.py"
    script.write_text(textwrap.dedent(SCRIPT.format(task=task)))
    folder = tmp_path / "pids"
    folder.mkdir()
    root = str(Path(__file__).resolve().parents[2])
    parent = subprocess.Popen(
        [sys.executable, script, folder], env={**os.environ, "PYTHONPATH": root}
    )
    pids: list[int] = []
    try:
        assert until(lambda: len(os.listdir(folder)) == 2, 120)
        pids = [int(name) for name in os.listdir(folder)]
        assert all(map(process_is_alive, pids))
        parent.send_signal(signal.SIGKILL)
        parent.wait()
        assert until(lambda: not any(map(_runs, pids)))
    finally:
        parent.kill()
        parent.wait()
        for pid in filter(_runs, pids):
            os.kill(pid, signal.SIGKILL)


def _runs(pid: int) -> bool:
    """Whether a process is there and no corpse that nobody has waited for."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_an_executor_works_and_ends_when_it_is_left():
    pool, count = workers.make_executor(2)
    with pool:
        pids = {future.result() for future in [pool.submit(os.getpid) for _ in range(8)]}
    assert count == 2
    assert os.getpid() not in pids
    assert not any(map(_runs, pids))
