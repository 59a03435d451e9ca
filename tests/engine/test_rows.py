"""metrics.jsonl loses no row, whatever happens to the disk, the folder or a line of it."""

import json
import os
import shutil
from pathlib import Path

import pytest

from clipfast.engine import ConfigError
from clipfast.engine.rows import Rows


def row(step: int) -> str:
    return json.dumps({"step": step, "loss": 1.0 / step})


def steps(path: Path) -> list[int]:
    return [json.loads(line)["step"] for line in path.read_text().splitlines()]


@pytest.mark.parametrize(
    "line",
    ["", "{", "null", "[1]", '{"step": 2, "lo', "\0\0\0\0", '{"step": "2"}', "{}", "[" * 5000],
)
def test_rows_put_a_damaged_line_aside_and_keep_the_others(tmp_path, line):
    path = tmp_path / "metrics.jsonl"
    path.write_text("\n".join([row(1), line, row(2), row(3), row(4)]) + "\n")
    rows = Rows(path, "a", 3)
    rows.close()
    assert steps(path) == [0, 1, 2, 3]
    assert (tmp_path / "metrics.set-aside.jsonl").read_text().splitlines() == [line, row(4)]
    assert rows.notes == [f"{path}: 1 damaged line(s), kept in metrics.set-aside.jsonl"]


def test_rows_of_bytes_that_are_no_text_do_not_stop_a_resume(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(row(1).encode() + b"\n\xff\xfe\x80\n" + row(2).encode() + b"\n")
    Rows(path, "a", 5).close()
    assert steps(path) == [0, 1, 2]


def test_rows_of_another_run_are_refused_and_left_alone(tmp_path):
    path = tmp_path / "metrics.jsonl"
    Rows(path, "a", 0).close()
    before = path.read_bytes()
    with pytest.raises(ConfigError, match="rows of run a, this is run b"):
        Rows(path, "b", 3)
    assert path.read_bytes() == before


def test_rows_wait_for_a_full_disk_and_are_all_there_afterwards(tmp_path, monkeypatch):
    path = tmp_path / "metrics.jsonl"
    rows = Rows(path, "a", 0)
    assert rows.write(row(1)) == []
    real, room = rows._file, [7]

    class Full:
        """A file with room for a few bytes."""

        def __getattr__(self, name):
            return getattr(real, name)

        def write(self, data):
            count = min(len(data), room[0])
            if not count and len(data):
                raise OSError(28, "No space left on device")
            room[0] -= count
            return real.write(data[:count])

    rows._file = Full()
    (line,) = rows.write(row(2))
    assert line.startswith(f"{path}: No space left on device")
    assert "free on that file system" in line
    assert rows.write(row(3)) == []
    room[0] = 10_000
    assert rows.write(row(4)) == [f"{path} is written again, with all rows since"]
    assert rows.close() == []
    assert steps(path) == [0, 1, 2, 3, 4]


def test_rows_that_could_not_be_written_by_the_end_are_said_to_be_lost(tmp_path):
    rows = Rows(tmp_path / "metrics.jsonl", "a", 0)
    rows._file.close()
    rows._file = open("/dev/full", "r+b", buffering=0)  # noqa: SIM115
    rows._follow = lambda: None
    rows.write(row(1))
    rows.write(row(2))
    (line,) = rows.close()
    assert line.startswith("LOST: the last 2 rows of ")
    assert rows.close() == []


def test_rows_do_not_write_over_those_of_a_run_that_took_the_file(tmp_path):
    path = tmp_path / "metrics.jsonl"
    mine = Rows(path, "mine", 0)
    path.unlink()
    theirs = Rows(path, "theirs", 0)
    theirs.write(row(1))
    (line,) = mine.write(row(1))
    assert "it now has the rows of run theirs" in line
    assert mine.close()[0].startswith("LOST: the last 1 rows")
    theirs.close()
    assert [json.loads(line).get("run") for line in path.read_text().splitlines()] == [
        "theirs",
        None,
    ]


def test_rows_put_nothing_aside_through_a_link(tmp_path):
    path, elsewhere = tmp_path / "metrics.jsonl", tmp_path / "elsewhere"
    elsewhere.write_text("before")
    path.write_text("echo payload\n")
    (tmp_path / "metrics.set-aside.jsonl").symlink_to(elsewhere)
    with pytest.raises(OSError, match="symbolic link"):
        Rows(path, "a", 3)
    assert elsewhere.read_text() == "before"


@pytest.mark.parametrize("loss", ["file", "folder", "replaced"])
def test_rows_whose_file_or_folder_went_are_written_anew(tmp_path, loss):
    path = tmp_path / "run" / "metrics.jsonl"
    path.parent.mkdir()
    rows = Rows(path, "a", 0)
    rows.write(row(1))
    if loss == "folder":
        shutil.rmtree(path.parent)
    else:
        os.remove(path)
    if loss == "replaced":
        path.write_text("something else\n")
    assert rows.write(row(2)) == []
    rows.close()
    assert steps(path) == [0, 1, 2]
