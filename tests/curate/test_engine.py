"""clipfast.curate.engine: parts that stay, the same bytes for any split, and what fails."""

import os
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest

import clipfast.storage as storage
from clipfast.curate.engine import read_table, run
from clipfast.curate.engine.parts import arrow
from tests.doors.test_door_storage import MemoryStorage

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.needs("pyarrow")


@dataclass(frozen=True)
class Number:
    value: int

    @property
    def part(self) -> str:
        return f"n{self.value}"


@dataclass(frozen=True)
class Squares:
    """Fails at one value, and ends its process at another; notes each call in a folder."""

    calls: str
    bad: int = -1
    deadly: int = -1
    version: int = 1
    name: ClassVar[str] = "squares"

    def options(self) -> dict[str, Any]:
        return {"version": self.version}

    def table(self, item: Number) -> Any:
        if item.value == self.bad:
            raise ValueError(f"item {item.value} is bad")
        if item.value == self.deadly:
            os._exit(3)
        with open(Path(self.calls, str(item.value)), "a") as file:
            file.write("x")
        return arrow().table({"square": [item.value**2]})


def calls(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir()}


@pytest.fixture
def seen(tmp_path):
    (tmp_path / "calls").mkdir()
    return tmp_path / "calls"


ITEMS = [Number(i) for i in (3, 1, 2, 10)]


def test_run_makes_each_part_once_and_goes_on_where_it_failed(tmp_path, seen):
    folder = str(tmp_path / "out")
    with pytest.raises(ValueError, match="item 2 is bad"):
        run(Squares(str(seen), bad=2), ITEMS, folder, workers=1)
    before = calls(seen)
    assert before
    paths = run(Squares(str(seen)), ITEMS, folder, workers=1)
    assert calls(seen) == {"1": "x", "2": "x", "3": "x", "10": "x"}
    assert [read_table(path)["square"].to_pylist() for path in paths] == [[1], [100], [4], [9]]
    # Nothing is left to do.
    assert run(Squares(str(seen)), ITEMS[::-1], folder, workers=1) == paths
    assert calls(seen)["2"] == "x"
    # Another option is another folder.
    assert run(Squares(str(seen), version=2), ITEMS, folder, workers=1) != paths
    assert calls(seen)["2"] == "xx"


def test_run_goes_on_where_it_was_killed_and_writes_the_same_bytes(tmp_path, seen):
    folder = str(tmp_path / "out")
    code = (
        "from tests.curate.test_engine import *\n"
        f"run(Squares({str(seen)!r}, deadly=2), ITEMS, {folder!r}, workers=1)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 3, done.stderr
    assert set(calls(seen)) == {"3", "1"}
    # What a writer that is no more has left of a part.
    place = Path(folder, next(os.scandir(folder)).name)
    left = place / f".n2.parquet.{2**22 + 1}@{socket.gethostname()}.tmp"
    left.write_bytes(b"PAR1")
    paths = run(Squares(str(seen)), ITEMS, folder, workers=1)
    assert calls(seen) == {"1": "x", "2": "x", "3": "x", "10": "x"}
    assert sorted(map(str, place.iterdir())) == sorted(paths)
    at_once = run(Squares(str(seen)), ITEMS, str(tmp_path / "at-once"), workers=1)
    assert [Path(path).read_bytes() for path in paths] == [Path(p).read_bytes() for p in at_once]


def test_run_writes_to_a_store(tmp_path, seen, monkeypatch):
    store = MemoryStorage()
    monkeypatch.setitem(storage._storages, "mem", store)
    paths = run(Squares(str(seen)), ITEMS, "mem://out", workers=1)
    assert sorted(store.objects) == sorted(paths)
    alone = run(Squares(str(seen)), ITEMS, str(tmp_path / "out"), workers=1)
    assert [store.read(path) for path in paths] == [Path(path).read_bytes() for path in alone]
    assert run(Squares(str(seen)), ITEMS, "mem://out", workers=1) == paths
    assert calls(seen)["1"] == "xx"


def test_run_on_a_pool_writes_the_same_bytes_and_survives_a_dead_worker(tmp_path, seen):
    alone = run(Squares(str(seen)), ITEMS, str(tmp_path / "alone"), workers=1)
    folder = str(tmp_path / "pool")
    with pytest.raises(RuntimeError, match=r"a worker process died .* n10.*what is done stays"):
        run(Squares(str(seen), deadly=10), ITEMS, folder, workers=2)
    paths = run(Squares(str(seen)), ITEMS, folder, workers=2)
    assert [Path(path).read_bytes() for path in paths] == [Path(p).read_bytes() for p in alone]
    assert not list(Path(paths[0]).parent.glob(".*"))


def test_run_refuses_an_unknown_engine_and_items_of_one_name(tmp_path, seen):
    step = Squares(str(seen))
    for engine in ("spark", "ray:", "pool:2"):
        with pytest.raises(ValueError, match=f"no engine '{engine}'"):
            run(step, ITEMS, str(tmp_path), engine)
    with pytest.raises(ValueError, match="have one name"):
        run(step, [Number(1), Number(1)], str(tmp_path))
    with pytest.raises(ValueError, match="workers must be at least 1"):
        run(step, ITEMS, str(tmp_path), workers=0)


def test_read_table_names_a_damaged_part(tmp_path, seen):
    (path, *_) = run(Squares(str(seen)), ITEMS, str(tmp_path / "out"), workers=1)
    Path(path).write_bytes(Path(path).read_bytes()[:-7])
    with pytest.raises(ValueError, match=r"is no Parquet file: .*; delete it and run again"):
        read_table(path)
