"""Ranks that die, hang or end: the others end too, and say who it was. Real processes.

All cases run at once: they wait far more than they compute.
"""

import multiprocessing
import os
import random
import socket
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.engine import watched

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["tests.engine.watched"])
# Of the watch; what is asserted of times is far above it, for machines that are busy.
PATIENCE = 3.0
LATEST = 45.0
# How it goes wrong, on which rank, in which part.
CASES = {
    "ends well": ("nothing", 1, "data"),
    "killed": ("kill", 1, "forward"),
    "rank 0 killed": ("kill", 0, "data"),
    "status": ("exit", 2, "data"),
    "own exception": ("raise", 1, "update"),
    "sleeps in the loader": ("sleep", 1, "data"),
    "rank 0 sleeps": ("sleep", 0, "forward"),
    "stopped": ("stop", 2, "forward"),
    "holds the lock": ("hold", 1, "forward"),
    "guard killed": ("guard", 1, "data"),
}


@dataclass
class Ended:
    """How a case ended.

    Attributes:
        statuses: of the ranks.
        said: what all printed on stderr.
        seconds: from the start to the last end.
        folder: of the run.
        pids: of the ranks.
    """

    statuses: list[int]
    said: str
    seconds: float
    folder: Path
    pids: list[int]


@pytest.fixture(scope="module")
def ended(tmp_path_factory):
    began = time.monotonic()
    started = {}
    for name, (how, failing, part) in CASES.items():
        folder = tmp_path_factory.mktemp("run")
        (folder / "logs").mkdir()
        port = str(quiet_port())
        processes = []
        for rank in range(3):
            names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 3, "LOCAL_WORLD_SIZE": 3}
            names |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            # torch looks up the names of thirty ranks at once: a name server may drop some.
            names |= {"RES_OPTIONS": "timeout:1 attempts:1"}
            variables = {key: str(value) for key, value in names.items()}
            mine = how if rank == failing else "nothing"
            arguments = (variables, folder, mine, part, PATIENCE)
            process = _CONTEXT.Process(target=watched.rank, args=arguments, daemon=True)
            process.start()
            processes.append(process)
        started[name] = (folder, processes)
    found = {}
    for name, (folder, processes) in started.items():
        for process in processes:
            process.join(max(0.1, 90 - (time.monotonic() - began)))
        found[name] = Ended(
            [process.exitcode for process in processes],
            "".join((folder / f"stderr{rank}").read_text() for rank in range(3)),
            time.monotonic() - began,
            folder,
            [process.pid for process in processes],
        )
        for process in processes:
            process.kill()
    return found


def quiet_port() -> int:
    """A port that the system gives to nobody who asks for any, as the other cases do meanwhile."""
    while True:
        port = random.randrange(20_000, 32_000)
        with socket.socket() as listener:
            try:
                listener.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port


def guards_of(pids: list[int]) -> list[str]:
    """Command lines of guards of these ranks that still live."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = entry.read_bytes().split(b"\0")
        except OSError:
            continue
        if b"clipfast.watchman" in words and int(words[3]) in pids:
            found.append(words[3].decode())
    return found


@pytest.mark.parametrize("name", CASES)
def test_watchdog_ends_all_ranks_in_time_and_nothing_is_left(ended, name):
    case = ended[name]
    assert None not in case.statuses, case.said
    assert case.seconds < LATEST
    if name == "ends well":
        assert case.statuses == [0, 0, 0], case.said
    else:
        assert 0 not in case.statuses, case.said
    # A guard that is killed before it has met the others tells them nothing.
    assert "Traceback" not in case.said or name in ("own exception", "guard killed"), case.said
    deadline = time.monotonic() + 20
    while left := guards_of(case.pids):
        assert time.monotonic() < deadline, left
        time.sleep(0.1)


def test_watchdog_says_nothing_of_a_run_that_ends_well(ended):
    # Ranks that start late on a busy machine are told of.
    said = ended["ends well"].said
    assert not any(word in said for word in ("error", "HANG", "Traceback")), said


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("killed", "error: rank 1 on HOST was killed by SIGKILL (after step 5, in forward)"),
        ("rank 0 killed", "error: rank 0 on HOST was killed by SIGKILL (after step 5, in data)"),
        ("status", "error: rank 2 on HOST ended with status 7 (after step 5, in data)"),
        ("own exception", "error: rank 1 on HOST failed first, and the run ends"),
        ("guard killed", "of this rank, process"),
    ],
)
def test_watchdog_names_a_rank_that_died_once(ended, name, words):
    case = ended[name]
    assert case.said.count(words.replace("HOST", os.uname().nodename)) == 1, case.said


@pytest.mark.parametrize(
    ("name", "rank", "where", "state", "frame"),
    [
        ("sleeps in the loader", 1, "data", "sleeping", "in rank"),
        ("rank 0 sleeps", 0, "forward", "sleeping", "in rank"),
        ("stopped", 2, "forward", "stopped by a signal", "no stack"),
        ("holds the lock", 1, "forward", "sleeping", "in hold"),
    ],
)
def test_watchdog_reports_who_hangs_and_where_all_stand(ended, name, rank, where, state, frame):
    case, host = ended[name], os.uname().nodename
    lines = case.said.splitlines()
    first = next(i for i, line in enumerate(lines) if line.startswith("HANG: "))
    assert lines[first].startswith(f"HANG: rank {rank} on {host} hangs after step 5, in {where}, ")
    assert lines[first].endswith("and 2 ranks wait for it")
    # Who hangs comes first, then the others, which share their lines.
    assert lines[first + 1].startswith(f"  rank {rank} on {host}, process {case.pids[rank]}: ")
    assert lines[first + 1].endswith(state)
    report = case.said[case.said.index("HANG") :]
    assert frame in report
    others = ", ".join(str(each) for each in range(3) if each != rank)
    assert f"  2 ranks, {others}: after step 5, update, for" in report, report
    assert "waits in a collective" in report
    assert "in all_reduce" in report
    assert case.said.count(f"error: rank {rank} on {host} hangs") == 1
    kept = {path.name: path.read_text() for path in (case.folder / "logs").glob("hang-*")}
    assert set(kept) == {f"hang-rank{each:05d}.txt" for each in range(3)}
    for each, text in kept.items():
        alone = name == "stopped" and each == "hang-rank00002.txt"
        assert ("Thread 0x" in text) != alone, text
