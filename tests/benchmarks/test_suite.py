"""benchmarks.suite: a part that fails, hangs or dies costs itself alone, and the time is kept."""

from __future__ import annotations

import importlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks import suite
from benchmarks.parts.suite import catalogue, process, run
from benchmarks.parts.suite.journal import Journal
from benchmarks.parts.suite.part import Outcome, Part
from clipfast.files import process_is_alive

ROOT = Path(__file__).resolve().parents[2]
# What a benchmark does: appends to the file after --json.
GIVES = "import sys, pathlib; pathlib.Path(sys.argv[-1]).open('a').write('{}\\n')"


def part(name: str, code: str = GIVES, seconds: float = 0.1, **fields) -> Part:
    return Part(name, f"toy {name}", ("-c", code), seconds, **fields)


def run_all(parts, folder, seconds=60.0, say=lambda line: None, **options):
    return run.run_parts(parts, Journal(folder), run.Budget(seconds), say=say, **options)


def statuses(outcomes) -> dict[str, str]:
    return {outcome.name: outcome.status for outcome in outcomes}


def test_a_part_that_fails_or_runs_out_of_memory_is_named_and_passed_over(tmp_path):
    parts = [
        part("fails", GIVES + "; sys.exit('no such kernel')"),
        part("crashes", "import os; os.kill(os.getpid(), 11)"),
        part("hungry", "raise MemoryError('64 GiB')"),
        part("silent", "pass"),
        part("lacks", needs=("no_such_module_here",)),
        part("works"),
    ]
    outcomes = run_all(parts, tmp_path)
    assert statuses(outcomes) == {
        "fails": "failed",
        "crashes": "failed",
        "hungry": "out of memory",
        "silent": "failed",
        "lacks": "needs",
        "works": "done",
    }
    told = run.table(parts, outcomes)
    assert "exit 1: no such kernel" in told
    assert "signal 11" in told
    assert "MemoryError: 64 GiB" in told
    assert "it ended well and wrote nothing" in told
    assert "not run: needs no_such_module_here" in told
    # What it wrote before it failed is kept.
    assert outcomes[0].gave == "1 rows"
    assert [outcome.is_failure for outcome in outcomes] == [True, True, True, True, False, False]


def test_a_part_that_hangs_is_ended_with_its_children(tmp_path, monkeypatch):
    # The part that works starts a Python within it, on a machine with other work.
    limit = 4.0
    monkeypatch.setattr(run, "limit_of", lambda cost: limit)
    child = "import subprocess, sys, time; p = subprocess.Popen([sys.executable, '-c', "
    child += "'import time; time.sleep(60)']); print(p.pid, flush=True); time.sleep(60)"
    began = time.monotonic()
    outcomes = run_all([part("hangs", child), part("works")], tmp_path)
    assert statuses(outcomes) == {"hangs": "hung", "works": "done"}
    assert "did not end in" in outcomes[0].reason
    assert time.monotonic() - began < limit + process.GRACE + 9
    pid = int((tmp_path / "logs" / "hangs.log").read_text())
    assert not _is_alive(pid)


def _is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_the_budget_is_kept_and_what_fits_runs_before_what_does_not(tmp_path):
    seconds = run.RESERVE + 3.0
    parts = [
        part("long", seconds=30),
        part("longer-than-it-says", "import time; time.sleep(60)", seconds=0.5),
        part("too-late", seconds=2),
    ]
    began = time.monotonic()
    lines: list[str] = []
    outcomes = run_all(parts, tmp_path, seconds, say=lines.append)
    assert time.monotonic() - began <= seconds + 0.5
    assert statuses(outcomes) == {
        "long": "no time",
        "longer-than-it-says": "cut short",
        "too-late": "no time",
    }
    assert "not run: no time: takes about 30 s" in run.table(parts, outcomes)
    assert any(re.match(r"\[ +\d+ s of \d+\] 1/3 long: not run", line) for line in lines)
    assert not any(outcome.is_failure for outcome in outcomes)


def test_a_slow_machine_is_given_more_time(tmp_path):
    outcomes = run_all([part("work", seconds=3)], tmp_path, run.RESERVE + 5, slowness=lambda: 2.0)
    assert statuses(outcomes) == {"work": "no time"}


def test_resume_leaves_out_what_is_done_and_takes_what_failed_last(tmp_path):
    flag = tmp_path / "mended"
    fails = part("fails", f"import os, sys; os.path.exists({str(flag)!r}) or sys.exit(1); {GIVES}")
    parts = [part("first"), fails, part("third")]
    assert statuses(run_all(parts[:2], tmp_path)) == {"first": "done", "fails": "failed"}
    stamp = (tmp_path / "rows" / "first.jsonl").stat().st_mtime_ns
    flag.touch()
    lines: list[str] = []
    assert set(statuses(run_all(parts, tmp_path, say=lines.append)).values()) == {"done"}
    assert (tmp_path / "rows" / "first.jsonl").stat().st_mtime_ns == stamp
    assert [line.split()[-1] for line in lines if "toy" in line] == ["third", "fails"]


def test_a_part_that_failed_at_once_is_given_its_whole_time_again(tmp_path, monkeypatch):
    limits = []
    limit_of = run.limit_of
    monkeypatch.setattr(run, "limit_of", lambda cost: limits.append(limit_of(cost)) or limits[-1])
    for _ in range(2):
        run_all([part("fails", "raise SystemExit(1)", seconds=100)], tmp_path, None)
    assert limits == [limit_of(100)] * 2


# Parts of a suite in a process of its own, which is then killed.
KILLED = """
import sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from tests.benchmarks.test_suite import GIVES, Journal, part, run
parts = [part("first"), part("second", "import os, time; print(os.getpid(), flush=True); "
         + GIVES + "; time.sleep(60)"), part("third")]
run.run_parts(parts, Journal(Path(sys.argv[2])), run.Budget(60))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="asks the kernel for an end")
def test_a_killed_suite_leaves_no_part_behind_and_goes_on(tmp_path):
    killed = subprocess.Popen([sys.executable, "-c", KILLED, str(ROOT), str(tmp_path)])
    rows, log = tmp_path / "rows" / "second.jsonl", tmp_path / "logs" / "second.log"
    deadline = time.monotonic() + 60
    while not rows.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait()
    time.sleep(0.3)
    assert not _is_alive(int(log.read_text()))
    # The line that it was writing.
    with (tmp_path / "journal.jsonl").open("a") as file:
        file.write('{"name": "sec')
    parts = [part("first"), part("second"), part("third")]
    lines: list[str] = []
    outcomes = run_all(parts, tmp_path, say=lines.append)
    assert set(statuses(outcomes).values()) == {"done"}
    assert [line.split()[-1] for line in lines if "toy" in line] == ["second", "third"]
    assert rows.read_text() == "{}\n"
    assert [json.loads(one)["name"] for one in _whole_lines(tmp_path / "journal.jsonl")] == [
        *("first", "second", "third")
    ]


def _whole_lines(path: Path) -> list[str]:
    return [line for line in path.read_text().splitlines() if line.endswith("}")]


def test_a_folder_is_begun_once_and_of_one_machine(tmp_path):
    facts = {"device": "cpu", "device_name": "A CPU", "environment": {}}
    Journal(tmp_path).begin(facts, resume=False)
    with pytest.raises(SystemExit, match="--resume goes on with it"):
        Journal(tmp_path).begin(facts, resume=False)
    Journal(tmp_path).begin(facts, resume=True)
    with pytest.raises(SystemExit, match="measured on A CPU, and this is Another"):
        Journal(tmp_path).begin({**facts, "device_name": "Another"}, resume=True)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_the_catalogues_commands_are_what_their_benchmarks_take(device, tmp_path):
    for one in catalogue.parts(device, ROOT):
        if one.kind == "tests":
            chosen = [word for word in one.command if word.startswith("tests/")]
            assert chosen
            assert all((ROOT / path).exists() for path in chosen)
            continue
        module = importlib.import_module(one.command[1])
        module.build_parser().parse_args([*one.command[2:], "--json", str(tmp_path / "x")])


def test_tests_of_a_part_are_counted(tmp_path):
    junit = tmp_path / "tests.xml"
    junit.write_text(
        '<testsuites><testsuite tests="9" failures="1" errors="1" skipped="3"/></testsuites>'
    )
    one = part("tests", kind="tests")
    assert run.given(one, tmp_path / "none", junit) == "4 passed, 2 failed, 3 skipped"


def test_tests_that_were_all_skipped_or_cut_off_as_they_were_counted_prove_nothing(tmp_path):
    counts = '<testsuites><testsuite tests="3" failures="0" errors="0" skipped="3"/></testsuites>'
    write = "import sys; open(sys.argv[-1].partition('=')[2], 'w').write({!r})"
    outcomes = run_all(
        [
            part("skipped", write.format(counts), kind="tests"),
            part("torn", write.format(counts[:30]) + "; sys.exit(1)", kind="tests"),
        ],
        tmp_path,
    )
    assert statuses(outcomes) == {"skipped": "failed", "torn": "failed"}
    assert "no test was run" in outcomes[0].reason


def test_only_names_what_there_is():
    parts = [part("loss"), part("loss-large"), part("pool")]
    assert [one.name for one in suite.choose(parts, ["loss*"])] == ["loss", "loss-large"]
    with pytest.raises(SystemExit, match="--only step: no such part; there are loss, loss-large"):
        suite.choose(parts, ["step"])


def test_an_outcome_says_what_it_was():
    assert Outcome("x", "hung").is_failure
    assert not Outcome("x", "cut short").is_failure


# A part with a rank that waits where no signal but SIGKILL reaches it, as in a collective.
PART_WITH_A_RANK = """
import multiprocessing, signal, sys, time
from benchmarks.parts.suite.process import end_with_parent

def rank(connection):
    end_with_parent()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    connection.send(True)
    time.sleep(1000)

if __name__ == "__main__":
    here, there = multiprocessing.Pipe()
    child = multiprocessing.get_context("fork").Process(target=rank, args=(there,))
    child.start()
    here.recv()
    print(child.pid, flush=True)
    time.sleep(1000)
"""


def test_a_killed_part_leaves_no_rank_behind():
    part = subprocess.Popen(
        [sys.executable, "-c", PART_WITH_A_RANK], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    rank = int(part.stdout.readline())
    part.kill()
    part.communicate()
    deadline = time.monotonic() + 20
    while process_is_alive(rank):
        assert time.monotonic() < deadline, "the rank outlived its part"
        time.sleep(0.05)
