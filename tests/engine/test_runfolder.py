"""A run's folder: whose it is, what is written down of it, and what another start may do."""

import json
import shutil
from pathlib import Path

import pytest

from clipfast.engine import ConfigError
from clipfast.engine.runfolder import RunFolder


def opened(path: Path, *, resumes: bool = False) -> RunFolder:
    folder = RunFolder(path)
    folder.open(resumes=resumes)
    return folder


def record(path: Path) -> dict:
    return json.loads((path / "run.json").read_text())


def names(path: Path) -> list[str]:
    return sorted(entry.name for entry in path.iterdir())


def test_run_folder_records_every_start_and_end_under_one_id(tmp_path):
    path = tmp_path / "runs" / "a"
    first = opened(path)
    first.begin({"config": {"seed": 1}}, resumed=False)
    first.end("interrupted", 7)
    first.close()
    again = opened(path, resumes=True)
    assert again.run_id == first.run_id
    again.begin({"config": {"seed": 1}}, resumed=True)
    again.end("finished", 9)
    again.close()
    found = record(path)
    assert found["run"] == first.run_id
    assert [start["ended"]["status"] for start in found["starts"]] == ["interrupted", "finished"]
    assert {"time", "command", "host", "pid", "config"} <= found["starts"][0].keys()
    assert names(tmp_path / "runs") == ["a"]


def test_run_folder_of_a_live_run_is_refused_and_left_where_it_is(tmp_path):
    first = opened(tmp_path / "a")
    first.begin({}, resumed=False)
    for resumes in (True, False):
        with pytest.raises(ConfigError, match=r"a belongs to a run that is alive: process \d+ on"):
            opened(tmp_path / "a", resumes=resumes)
    assert record(tmp_path / "a")["run"] == first.run_id
    first.close()


def test_run_folder_of_an_earlier_run_moves_aside_under_a_number(tmp_path):
    path = tmp_path / "a"
    ids = []
    for _ in range(3):
        folder = opened(path)
        notes = folder.begin({}, resumed=False)
        folder.close()
        ids.append(folder.run_id)
    assert [record(p)["run"] for p in (tmp_path / "a.1", tmp_path / "a.2", path)] == ids
    assert "it is now" in notes[0]
    # One of a version without a record.
    (path / "run.json").rename(path / "metrics.jsonl")
    opened(path).begin({}, resumed=False)
    assert names(tmp_path / "a.3") == ["metrics.jsonl"]


def test_run_folder_without_anything_of_a_run_is_used_as_it_is(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "notes.txt").write_text("mine")
    folder = opened(tmp_path / "a")
    assert folder.begin({}, resumed=False) == []
    folder.close()
    assert names(tmp_path / "a") == ["notes.txt", "run.json"]


@pytest.mark.parametrize("text", ["", "null", "{}", '{"run": 1, "starts": []}', "[" * 50_000])
def test_run_folder_with_a_damaged_record_goes_on_under_the_checkpoints_id(tmp_path, text):
    path = tmp_path / "a"
    path.mkdir()
    (path / "run.json").write_text(text)
    folder = RunFolder(path)
    (note,) = folder.open(resumes=True, known="theirs")
    assert "was damaged" in note
    assert folder.run_id == "theirs"
    folder.begin({}, resumed=True)
    folder.close()
    assert (path / "run.json.1").read_text() == text


def test_run_folder_that_was_deleted_is_made_anew_and_one_that_was_taken_is_left(tmp_path):
    path = tmp_path / "runs" / "a"
    folder = opened(path)
    folder.begin({"config": 1}, resumed=False)
    folder.require()
    shutil.rmtree(tmp_path / "runs")
    folder.require()
    assert record(path)["starts"][0]["config"] == 1
    (path / "run.json").write_text(json.dumps({"run": "another", "starts": []}))
    with pytest.raises(ConfigError, match=f"run another, this is run {folder.run_id}"):
        folder.require()
    folder.close()


def test_run_folder_that_another_run_took_keeps_that_ones_record(tmp_path):
    path = tmp_path / "a"
    folder = opened(path)
    folder.begin({}, resumed=False)
    (tmp_path / ".a.lock").unlink()
    other = opened(path)
    other.begin({}, resumed=False)
    with pytest.raises(ConfigError, match="was taken by another run"):
        folder.require()
    folder.end("failed", 3)
    folder.close()
    assert record(path)["run"] == other.run_id
    assert "ended" not in record(path)["starts"][-1]
    with pytest.raises(ConfigError, match="is alive"):
        opened(path)
    other.close()


@pytest.mark.parametrize("remains", ["checkpoints", "final.safetensors"])
def test_run_folder_with_remains_of_a_run_alone_moves_aside_too(tmp_path, remains):
    (tmp_path / "a" / remains).mkdir(parents=True)
    folder = opened(tmp_path / "a")
    folder.begin({}, resumed=False)
    folder.close()
    assert names(tmp_path / "a.1") == [remains]


def test_run_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "runs").write_text("a file")
    with pytest.raises(ConfigError, match=r"runs.a cannot be used as a run's folder"):
        opened(tmp_path / "runs" / "a")
