"""Rows are on disk as they come: a killed benchmark keeps them, and nothing unchecked is there."""

from __future__ import annotations

import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import pytest

from benchmarks.parts.common import rows as files
from benchmarks.parts.common.harness import CheckFailed, Row

ROOT = Path(__file__).resolve().parents[2]
ROW: Row = {"name": "noop", "checked": True, "device": "cpu", "size": 1, "median_ms": 1.0}
# Its second case kills it, as a time limit or the system's memory killer does.
KILLED = """
import os, signal, sys
from benchmarks import adamw
from benchmarks.parts.adamw import measure

count = 0

def measure_list(*args, first=adamw.measure_list):
    global count
    count += 1
    if count == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return first(*args)

adamw.measure_list = measure_list
options = ["--device", "cpu", "--lists", "flat", "flat", "--elements", "4096", "--runs", "1"]
adamw.main([*options, "--contenders", "fp16", "--json", sys.argv[1]])
"""


@pytest.fixture(autouse=True)
def _stamp(monkeypatch, tmp_path):
    """A stamp that needs neither git nor a device, and results of its own."""
    module = type(sys)("clipfast.env")
    module.stamp = lambda: {"commit": "0000000"}
    monkeypatch.setitem(sys.modules, "clipfast.env", module)
    monkeypatch.setattr(files, "RESULTS", tmp_path / "results")


def row_file(**options) -> files.RowFile:
    given = {"json": None, "plot": None, "is_default": False, "save": False, **options}
    return files.RowFile("subject", Namespace(**given), lambda row: row["size"])


def kept() -> list[tuple]:
    found = files.read_rows("subject")
    return [(row["device"], row["size"], row["median_ms"]) for row in found]


def test_rows_are_in_the_file_asked_for_as_they_come(tmp_path):
    path = tmp_path / "new" / "rows.jsonl"
    path.parent.mkdir()
    path.write_text("what another run left\n")
    file = row_file(json=path)
    assert path.read_text() == ""
    file.add([ROW, {**ROW, "name": "other"}])
    first = path.read_text()
    written = files.read_file(path)
    assert [row["name"] for row in written] == ["noop", "other"]
    assert written[0] == {"subject": "subject", **ROW, "environment": {"commit": "0000000"}}
    file.add([{**ROW, "size": 2}])
    assert path.read_text().startswith(first)
    assert len(files.read_file(path)) == 3
    assert not (tmp_path / "results").exists()


def test_rows_take_the_place_of_the_same_case_as_they_come(tmp_path):
    older = row_file(is_default=True)
    older.add([{**ROW, "size": size} for size in (1, 2, 3)])
    older.add([{**ROW, "device": "cuda:0"}])
    older.finish()
    new = row_file(is_default=True)
    new.add([{**ROW, "median_ms": 2.0}])
    # What a killed run has not come to is as it was.
    assert kept() == [("cpu", 2, 1.0), ("cpu", 3, 1.0), ("cuda:0", 1, 1.0), ("cpu", 1, 2.0)]
    new.add([{**ROW, "size": 2, "median_ms": 2.0}])
    new.finish()
    # There is no size 3 any more.
    assert kept() == [("cuda:0", 1, 1.0), ("cpu", 1, 2.0), ("cpu", 2, 2.0)]
    one = row_file(save=True)
    one.add([{**ROW, "size": 2, "median_ms": 3.0}])
    one.finish()
    assert kept() == [("cuda:0", 1, 1.0), ("cpu", 1, 2.0), ("cpu", 2, 3.0)]


def test_rows_of_one_card_do_not_take_the_place_of_anothers(monkeypatch):
    for card in ("one card", "another"):
        stamp = {"commit": "1", "device": {"gpus": [{"name": card}]}}
        monkeypatch.setattr(sys.modules["clipfast.env"], "stamp", lambda stamp=stamp: stamp)
        file = row_file(is_default=True)
        file.add([{**ROW, "device": "cuda"}])
        file.finish()
    assert kept() == [("cuda", 1, 1.0)] * 2


def test_rows_of_other_options_are_written_nowhere(tmp_path, capsys):
    file = row_file()
    file.add([ROW])
    file.finish(lambda rows, path: pytest.fail("drawn"))
    assert "rows: not written; --json PATH writes them" in capsys.readouterr().out
    assert not (tmp_path / "results").exists()


def test_rows_without_a_check_are_refused(tmp_path):
    file = row_file(json=tmp_path / "rows.jsonl")
    with pytest.raises(CheckFailed, match="'made up'"):
        file.add([ROW, {"name": "made up", "median_ms": 1.0}])
    assert (tmp_path / "rows.jsonl").read_text() == ""


def test_rows_of_a_killed_benchmark_are_there(tmp_path):
    path = tmp_path / "rows.jsonl"
    done = subprocess.run(
        [sys.executable, "-c", KILLED, path], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode < 0, done.stderr
    (row,) = files.read_file(path)
    assert row["contender"] == "fp16"
