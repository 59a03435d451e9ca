"""DeepSpeed's helper is loaded by one process at a time, and a killed one's mark does not stay."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest
from torch.utils import cpp_extension

from clipfast.engine.deepspeed import helper

MARKS_SAY_WHO_BUILDS = helper._marks_say_who_builds
# As torch.utils.file_baton does, which the helper's mark comes from.
HOLD = "import os, sys, time; os.open(sys.argv[1], os.O_CREAT | os.O_EXCL); time.sleep(60)"


@pytest.fixture(autouse=True)
def hurry(monkeypatch):
    monkeypatch.setattr(helper, "_STALE_SECONDS", 0.0)
    monkeypatch.setattr(helper, "_LOOK_SECONDS", 0.01)
    monkeypatch.setattr(helper, "_marks_say_who_builds", lambda: True)


def load_in_thread(folder) -> tuple[threading.Thread, list[bool]]:
    found: list[bool] = []
    thread = threading.Thread(
        target=lambda: helper.load_alone(folder, lambda: found.append((folder / "lock").exists())),
        daemon=True,
    )
    thread.start()
    return thread, found


def test_helper_waits_for_who_builds_it_and_not_for_who_was_killed(tmp_path):
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path / "lock")])
    try:
        while not (tmp_path / "lock").exists():
            time.sleep(0.01)
        thread, found = load_in_thread(tmp_path)
        time.sleep(0.3)
        assert found == []
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        thread.join(30)
        assert found == [False]
    finally:
        holder.kill()
        holder.wait()


def test_helper_leaves_a_young_mark_to_machines_that_it_cannot_see(tmp_path, monkeypatch):
    monkeypatch.setattr(helper, "_STALE_SECONDS", 3600.0)
    mark = tmp_path / "lock"
    mark.touch()
    thread, found = load_in_thread(tmp_path)
    time.sleep(0.2)
    assert found == []
    os.utime(mark, (0, 0))
    thread.join(30)
    assert found == [False]


def test_helper_waits_for_no_file_that_torch_leaves_there(tmp_path, monkeypatch):
    monkeypatch.setattr(helper, "_STALE_SECONDS", 3600.0)
    monkeypatch.setattr(helper, "_marks_say_who_builds", lambda: False)
    (tmp_path / "lock").touch()
    thread, found = load_in_thread(tmp_path)
    thread.join(30)
    assert found == [True]


def test_helper_knows_how_this_torch_says_that_it_builds():
    known = {"FileBaton": True, "FileLock": False}
    found = [answer for name, answer in known.items() if hasattr(cpp_extension, name)]
    assert found == [MARKS_SAY_WHO_BUILDS()]


def test_helper_is_loaded_by_one_at_a_time(tmp_path):
    inside, most = 0, 0
    guard = threading.Lock()

    def load():
        nonlocal inside, most
        with guard:
            inside += 1
            most = max(most, inside)
        time.sleep(0.02)
        with guard:
            inside -= 1

    threads = [threading.Thread(target=helper.load_alone, args=(tmp_path, load)) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (inside, most) == (0, 1)
