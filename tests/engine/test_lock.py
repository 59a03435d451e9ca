"""One live run per name, on every kind of file system."""

import errno
import fcntl
import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from clipfast.engine import lock as locks
from clipfast.engine.lock import Held, Lock

HOLD = """
import sys, time
from pathlib import Path
from clipfast.engine.lock import Lock
lock = Lock(Path(sys.argv[1]))
lock.acquire()
print("held", flush=True)
time.sleep(60)
"""


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / ".run.lock"


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(locks, "BEAT_SECONDS", 0.1)


@pytest.fixture
def no_locks(monkeypatch):
    """A file system without locks, such as Lustre mounted without them."""

    def unsupported(descriptor, operation):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", unsupported)


@pytest.fixture
def holder(path):
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(path)], stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"held\n"
    yield process
    process.kill()
    process.wait()


def write(path: Path, **content) -> None:
    path.write_text(json.dumps({"host": "another", "pid": 1, "started": "1", "beat": 1, **content}))


def test_lock_is_given_back_and_leaves_nothing(path):
    for _ in range(3):
        lock = Lock(path)
        lock.acquire()
        with pytest.raises(Held, match=f"process {os.getpid()} on {socket.gethostname()}"):
            Lock(path).acquire()
        lock.release()
        lock.release()
        assert not path.exists()


def test_lock_of_a_live_process_is_refused_by_name_and_of_a_dead_one_taken(path, holder):
    with pytest.raises(Held, match=f"process {holder.pid} on {socket.gethostname()}"):
        Lock(path).acquire()
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    lock = Lock(path)
    lock.acquire()
    lock.release()


@pytest.mark.usefixtures("no_locks")
def test_lock_without_flock_goes_by_the_process(path, holder):
    with pytest.raises(Held, match=f"process {holder.pid}"):
        Lock(path).acquire()
    holder.kill()
    holder.wait()
    lock = Lock(path)
    lock.acquire()
    assert json.loads(path.read_text())["pid"] == os.getpid()
    lock.release()


@pytest.mark.usefixtures("no_locks")
def test_lock_without_flock_knows_a_number_that_went_to_another_process(path):
    write(path, host=socket.gethostname(), pid=os.getpid(), started="another time")
    lock = Lock(path)
    lock.acquire()
    lock.release()


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("locking", [True, False])
def test_lock_of_another_machine_is_taken_once_it_no_longer_beats(path, locking, request):
    if not locking:
        request.getfixturevalue("no_locks")
    write(path)
    lock = Lock(path)
    lock.acquire()
    assert json.loads(path.read_text())["host"] == socket.gethostname()
    lock.release()


def _beat(path: Path) -> None:
    for beat in range(2, 200):
        write(path, beat=beat)
        time.sleep(0.05)


@pytest.mark.usefixtures("quick")
def test_lock_of_another_machine_that_beats_is_refused(path):
    write(path)
    other = multiprocessing.get_context("fork").Process(target=_beat, args=(path,))
    other.start()
    try:
        with pytest.raises(Held, match="process 1 on another"):
            Lock(path).acquire()
    finally:
        other.kill()
        other.join()


@pytest.mark.usefixtures("quick")
def test_lock_counts_while_it_is_held_and_is_made_anew_where_its_file_went(path):
    lock = Lock(path)
    lock.acquire()
    first = json.loads(path.read_text())["beat"]
    time.sleep(0.35)
    assert json.loads(path.read_text())["beat"] > first
    path.unlink()
    lock.require()
    assert path.exists()
    path.unlink()
    thief = Lock(path)
    thief.acquire()
    with pytest.raises(Held):
        lock.require()
    thief.release()


@pytest.mark.parametrize("text", ["", "null", "{", "[1]", "\0" * 600])
def test_lock_whose_file_is_damaged_is_nobodys(path, text):
    path.write_text(text)
    lock = Lock(path)
    lock.acquire()
    lock.release()
