"""Checkpoints are complete or not there at all, the last few are kept, and 0.1's still load."""

import json
import os
import shutil
from pathlib import Path

import pytest

from clipfast.data import TrainLoader
from clipfast.engine import ConfigError
from clipfast.engine.checkpoint import Checkpoints, move_aside
from tests.engine.plans import plan

WRITTEN_BY_0_1 = Path(__file__).parent / "written_by_0_1"
pytestmark = pytest.mark.usefixtures("process_group")


class Engine:
    """DeepSpeed's two calls, with a file for its tensors."""

    def __init__(self) -> None:
        self.fails = False
        self.loaded: list[tuple[str, str]] = []

    def save_checkpoint(self, folder: str, tag: str, save_latest: bool) -> None:
        assert not save_latest
        path = Path(folder, tag)
        path.mkdir(parents=True, exist_ok=True)
        (path / "tensors").write_text(tag)
        if self.fails:
            raise OSError("no space left")

    def load_checkpoint(self, folder: str, tag: str) -> None:
        self.loaded.append((folder, tag))


def checkpoints(folder: Path, keep: int = 2, **options) -> Checkpoints:
    made = plan(**options)
    return Checkpoints(folder, keep, made.process, made.layout)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_checkpoints_keep_the_last_and_say_what_is_in_them(tmp_path):
    folder = tmp_path / "checkpoints"
    saved, engine = checkpoints(folder), Engine()
    for step in (10, 20, 30):
        path = saved.save(engine, step, {"loader": {"epoch": step}})
    assert names(folder) == ["step00000020", "step00000030"]
    assert saved.complete() == [folder / "step00000020", path]
    state = json.loads((path / "complete.json").read_text())
    assert state == {"step": 30, "layout": saved.layout, "loader": {"epoch": 30}}


def test_checkpoints_of_a_save_that_failed_do_not_count_and_go(tmp_path):
    folder = tmp_path / "checkpoints"
    saved, engine = checkpoints(folder), Engine()
    saved.save(engine, 10, {})
    engine.fails = True
    with pytest.raises(OSError, match="no space"):
        saved.save(engine, 20, {})
    # A failed save over a complete checkpoint takes its mark away first.
    with pytest.raises(OSError, match="no space"):
        saved.save(engine, 10, {})
    assert saved.complete() == []
    engine.fails = False
    saved.save(engine, 30, {})
    assert names(folder) == ["step00000030"]


def test_checkpoints_resume_the_newest_by_time_or_the_one_named(tmp_path):
    folder = tmp_path / "checkpoints"
    saved, engine = checkpoints(folder), Engine()
    assert saved.resume(engine, "latest") is None
    for age, step in enumerate((20, 10)):
        path = saved.save(engine, step, {})
        # Saved later, though of an earlier step, as after a resume from there.
        os.utime(path / "complete.json", (age, age))
    assert saved.resume(engine, "latest")["step"] == 10
    assert saved.resume(engine, str(folder / "step00000020"))["step"] == 20
    assert [tag for _, tag in engine.loaded] == ["step00000010", "step00000020"]


def test_checkpoints_refuse_what_is_incomplete_or_of_another_layout(tmp_path):
    saved, engine = checkpoints(tmp_path, stage=1), Engine()
    path = saved.save(engine, 10, {})
    with pytest.raises(ConfigError, match=r"--resume nowhere: no complete checkpoint there"):
        saved.resume(engine, "nowhere")
    other = checkpoints(tmp_path, stage=3)
    with pytest.raises(ConfigError, match=r"ZeRO stage 1, not 3\. Resume with what"):
        other.resume(engine, str(path))
    with pytest.raises(ConfigError, match=r"ranks 1, not 2.*precision torch\.float32, not"):
        checkpoints(tmp_path, stage=1, ranks=2, precision="bf16").resume(engine, "latest")
    assert engine.loaded == []


@pytest.mark.parametrize("masters", [True, False], ids=["0.1", "before masters were named"])
def test_checkpoints_of_the_version_before_load_with_the_place_in_the_data(tmp_path, masters):
    path = tmp_path / "step00000002"
    shutil.copytree(WRITTEN_BY_0_1 / path.name, path)
    if not masters:
        state = json.loads((path / "complete.json").read_text())
        del state["layout"]["masters"]
        (path / "complete.json").write_text(json.dumps(state))
    engine = Engine()
    state = checkpoints(tmp_path, stage=1).resume(engine, "latest")
    assert engine.loaded == [(str(tmp_path), path.name)]
    assert state["step"] == 2
    loader = TrainLoader(["sample/noto"], 64, 16, threads=1)
    loader.load_state_dict(state["loader"])
    assert (loader.state_dict()["epoch"], loader.state_dict()["index"]) == (0, 2)


def test_move_aside_numbers_earlier_runs_and_leaves_an_empty_folder(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    assert move_aside(run) is None
    for number in (1, 2):
        run.mkdir(exist_ok=True)
        (run / "metrics.jsonl").write_text("")
        assert move_aside(run) == tmp_path / f"run.{number}"
    assert not run.exists()
