"""Checkpoints stand whole or not at all, are verified before they load, and 0.1's still load."""

import errno
import json
import os
import shutil
from pathlib import Path

import pytest
import torch

from clipfast.checkpoint import Manifest, find
from clipfast.checkpoint import manifest as manifests
from clipfast.checkpoint.manifest import NAME
from clipfast.data import TrainLoader
from clipfast.engine import ConfigError
from clipfast.engine.checkpoint import SaveFailed
from tests.checkpoint.damage import DAMAGES
from tests.engine.saved import Engine, checkpoints, names, resume

WRITTEN_BY_0_1 = Path(__file__).parent / "written_by_0_1"
pytestmark = pytest.mark.usefixtures("process_group")


def test_checkpoints_keep_the_last_and_say_what_is_in_them(tmp_path):
    folder = tmp_path / "checkpoints"
    saved, engine = checkpoints(folder), Engine()
    for step in (10, 20, 30):
        path = saved.save(engine, step, {"loader": {"epoch": step}})
    assert names(folder) == ["step00000020", "step00000030"]
    assert names(path) == [NAME, "rank00000.safetensors", "rank00001.safetensors"]
    manifest = Manifest.read(path)
    assert (manifest.run, manifest.counter, manifest.step) == ("a-run", 2, 30)
    assert (manifest.layout, manifest.state) == (
        saved.layout,
        {"loader": {"epoch": 30}, "engine": engine.state()},
    )
    assert saved.latest() == path


def test_checkpoints_of_a_save_that_failed_leave_nothing_and_harm_nothing(tmp_path):
    folder = tmp_path / "checkpoints"
    saved, engine = checkpoints(folder), Engine()
    saved.save(engine, 10, {})
    engine.fails = True
    for step in (10, 20):
        with pytest.raises(SaveFailed, match=r"rank 0: .*step000000.0.*No space left.*free"):
            saved.save(engine, step, {})
    assert names(folder) == ["step00000010"]
    assert resume(saved, engine, "latest").step == 10
    engine.fails = False
    saved.save(engine, 20, {})
    assert names(folder) == ["step00000010", "step00000020"]


def test_checkpoints_look_for_room_before_they_write(tmp_path, monkeypatch):
    saved, engine = checkpoints(tmp_path), Engine()
    saved.save(engine, 10, {})
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=20_000))
    with pytest.raises(SaveFailed, match=r"the last checkpoint had 0\.00 GB"):
        saved.save(engine, 20, {})
    assert names(tmp_path) == ["step00000010"]


def test_checkpoints_that_a_kill_left_half_done_are_finished_or_go(tmp_path):
    saved, engine = checkpoints(tmp_path, keep=5), Engine()
    for step in (10, 20, 30):
        saved.save(engine, step, {})
    # Killed between the manifest and the last rename; between two renames; while deleting; before.
    (tmp_path / "step00000030").rename(tmp_path / ".step00000030.0a1b2c3d.partial")
    (tmp_path / "step00000020").rename(tmp_path / ".step00000020.replaced")
    shutil.copytree(tmp_path / "step00000010", tmp_path / ".step00000010.deleted")
    (tmp_path / ".step00000040.0a1b2c3d.partial").mkdir()
    saved.tidy()
    assert names(tmp_path) == ["step00000010", "step00000020", "step00000030"]
    assert resume(saved, engine, "latest").step == 30


def test_checkpoints_resume_the_newest_by_counter_whatever_clocks_said(tmp_path):
    saved, engine = checkpoints(tmp_path), Engine()
    assert resume(saved, engine, "latest") is None
    for age, step in ((2_000_000_000, 20), (1, 10)):
        path = saved.save(engine, step, {})
        # Saved later, though of an earlier step, as after a resume from there.
        os.utime(path / NAME, (age, age))
        os.utime(path, (age, age))
    assert resume(saved, engine, "latest").step == 10
    assert resume(saved, engine, str(tmp_path / "step00000020")).step == 20
    assert engine.loaded == ["step00000010", "step00000020"]


@pytest.mark.parametrize("damage", DAMAGES)
def test_checkpoints_that_are_damaged_are_named_and_passed_over(tmp_path, damage):
    saved, engine = checkpoints(tmp_path, keep=3), Engine()
    for step in (10, 20, 30):
        saved.save(engine, step, {})
    newest = tmp_path / "step00000030"
    DAMAGES[damage](newest, tmp_path / "step00000020")
    chosen = saved.choose("latest")
    assert chosen.manifest.step == 20
    assert chosen.notes[0].startswith("DAMAGED")
    assert "step00000030" in chosen.notes[0]
    # It is kept, and no longer counted.
    assert "step00000030.damaged" in names(tmp_path)
    saved.load(engine, chosen)
    saved.save(engine, 30, {})
    assert resume(saved, engine, "latest").step == 30
    assert "step00000030.damaged" in names(tmp_path)


@pytest.mark.parametrize("damage", DAMAGES)
def test_checkpoints_that_are_damaged_are_refused_by_name_and_where_all_are(tmp_path, damage):
    saved, engine = checkpoints(tmp_path), Engine()
    for step in (10, 20):
        saved.save(engine, step, {})
    newest, other = tmp_path / "step00000020", tmp_path / "step00000010"
    DAMAGES[damage](newest, other)
    with pytest.raises(ConfigError, match=r"no checkpoint is intact.*step00000020"):
        saved.choose(str(newest))
    (other / "rank00000.safetensors").unlink()
    with pytest.raises(ConfigError, match=r"no checkpoint is intact.*step000000"):
        saved.choose("latest")
    assert engine.loaded == []


def test_a_checkpoint_whose_manifest_is_lost_is_told_and_passed_over(tmp_path):
    saved, engine = checkpoints(tmp_path), Engine()
    for step in (10, 20):
        saved.save(engine, step, {})
    newest = tmp_path / "step00000020"
    (newest / NAME).unlink()
    with pytest.raises(ConfigError, match="no complete checkpoint there") as refused:
        saved.choose(str(newest))
    assert str(refused.value).endswith(f"of this run: {tmp_path / 'step00000010'}")
    chosen = saved.choose("latest")
    assert chosen.path == tmp_path / "step00000010"
    assert f"{newest} has no manifest.json: it was lost" in " ".join(chosen.notes)
    assert names(tmp_path) == ["step00000010", "step00000020.damaged"]


def test_checkpoints_of_another_run_are_not_taken_for_ones_own(tmp_path):
    own, other = checkpoints(tmp_path / "a"), checkpoints(tmp_path / "b", run="other")
    engine = Engine()
    own.save(engine, 10, {})
    for step in (10, 20):
        theirs = other.save(engine, step, {})
    shutil.copytree(theirs, tmp_path / "a" / theirs.name)
    chosen = own.choose("latest")
    assert chosen.manifest.step == 10
    assert "saved by run other, this is run a-run" in chosen.notes[0]
    # Nor are they deleted, or renamed.
    own.save(engine, 30, {})
    own.save(engine, 40, {})
    assert theirs.name in names(tmp_path / "a")
    # From elsewhere a run may branch off.
    assert own.choose(str(theirs)).manifest.run == "other"


def test_checkpoints_of_the_version_before_are_passed_over_where_a_file_is_missing(tmp_path):
    shutil.copytree(WRITTEN_BY_0_1 / "step00000002", tmp_path / "step00000002")
    with pytest.raises(ConfigError, match=r"no model states.*states of 0 ranks, 1 were saved"):
        checkpoints(tmp_path, stage=1).choose("latest")


@pytest.mark.parametrize("keep", range(1, 9))
def test_checkpoints_keep_as_many_as_asked_and_no_damaged_one_for_a_good_one(tmp_path, keep):
    saved, engine = checkpoints(tmp_path, keep=keep), Engine()
    for step in range(1, keep + 4):
        saved.save(engine, step, {})
        assert len(names(tmp_path)) == min(step, keep)
    (tmp_path / f"step{keep + 3:08d}" / NAME).write_text("null")
    saved.save(engine, 99, {})
    good = [found for found in find(tmp_path) if found.manifest]
    assert len(good) == keep


def test_checkpoints_at_multiples_are_kept_for_good_beside_the_newest(tmp_path):
    saved, engine = checkpoints(tmp_path, keep=2, keep_every=20), Engine()
    for step in (10, 20, 30, 40, 50, 60, 65):
        saved.save(engine, step, {})
    kept = [f"step{step:08d}" for step in (20, 40, 60, 65)]
    assert names(tmp_path) == kept
    # A start without the option deletes none that were promised.
    later = checkpoints(tmp_path, keep=1)
    later.save(engine, 70, {})
    assert names(tmp_path) == [*kept[:3], "step00000070"]
    # A damaged one is no checkpoint to count on, but stays in its place.
    (tmp_path / "step00000020" / NAME).write_text("null")
    saved.save(engine, 80, {})
    assert "step00000020" in names(tmp_path)


def test_checkpoints_that_cannot_be_read_now_are_passed_over_and_keep_their_name(
    tmp_path, monkeypatch
):
    saved, engine = checkpoints(tmp_path), Engine()
    for step in (10, 20):
        saved.save(engine, step, {})

    def broken(path: Path) -> str:
        if "step00000020" in str(path):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(path)

    real = manifests._sha256
    monkeypatch.setattr(manifests, "_sha256", broken)
    chosen = saved.choose("latest")
    assert chosen.manifest.step == 10
    assert "cannot be read: Input/output error" in chosen.notes[0]
    assert names(tmp_path) == ["step00000010", "step00000020"]


def test_checkpoints_that_a_run_leaves_behind_when_it_goes_back_no_longer_count(tmp_path):
    saved, engine = checkpoints(tmp_path, keep=3), Engine()
    for step in (10, 20, 30):
        saved.save(engine, step, {})
    saved.rewind(saved.choose(str(tmp_path / "step00000010")))
    assert names(tmp_path) == [
        "step00000010",
        "step00000020.superseded",
        "step00000030.superseded",
    ]
    assert saved.choose("latest").manifest.step == 10


def test_checkpoints_latest_starts_nothing_over_what_is_left(tmp_path):
    folder = tmp_path / "checkpoints"
    saved, engine = checkpoints(folder), Engine()
    saved.save(engine, 10, {}).rename(folder / "step00000010.damaged")
    with pytest.raises(ConfigError, match=r"but damaged ones \(step00000010\.damaged\)"):
        saved.choose("latest")
    shutil.rmtree(folder)
    (tmp_path / "final.safetensors").write_bytes(b"")
    with pytest.raises(ConfigError, match="the run has ended"):
        saved.choose("latest")


def test_checkpoints_of_a_run_are_listed_where_its_folder_was_named(tmp_path):
    saved = checkpoints(tmp_path / "run" / "checkpoints")
    path = saved.save(Engine(), 10, {})
    with pytest.raises(ConfigError, match=f"is a run's folder: name one.*{path}"):
        checkpoints(tmp_path / "other").choose(str(tmp_path / "run"))


def test_checkpoints_of_another_run_in_the_way_are_kept_under_its_name(tmp_path):
    other, own = checkpoints(tmp_path, run="other"), checkpoints(tmp_path)
    for saved in (other, own):
        saved.save(Engine(), 10, {})
    assert names(tmp_path) == ["step00000010", "step00000010.other"]


def test_checkpoints_refuse_what_is_incomplete_or_of_another_layout(tmp_path):
    saved, engine = checkpoints(tmp_path, stage=1), Engine()
    saved.save(engine, 10, {})
    with pytest.raises(ConfigError, match=r"--resume nowhere: no complete checkpoint there"):
        saved.choose("nowhere")
    with pytest.raises(
        ConfigError, match=r"precision torch\.float32, not.*export.*--model\.weights"
    ):
        checkpoints(tmp_path, stage=1, ranks=2, precision="bf16").choose("latest")
    assert engine.loaded == []


def test_checkpoints_fit_any_number_of_ranks_and_stage_and_say_what_differs(tmp_path):
    saved, engine = checkpoints(tmp_path, stage=1), Engine()
    saved.save(engine, 10, {})
    other = checkpoints(tmp_path, stage=3)
    other.layout.update(ranks=2, masters="other")
    assert resume(other, engine, "latest").step == 10
    assert other.differing(other.choose("latest")) == [
        "ranks 1 -> 2",
        "ZeRO stage 1 -> 3",
        "masters float32 -> other",
    ]


@pytest.mark.parametrize("masters", [True, False], ids=["0.1", "before masters were named"])
def test_checkpoints_of_the_version_before_load_with_the_place_in_the_data(tmp_path, masters):
    path = tmp_path / "step00000002"
    shutil.copytree(WRITTEN_BY_0_1 / path.name, path)
    for name in ("mp_rank_00_model_states.pt", "zero_pp_rank_0_mp_rank_00_optim_states.pt"):
        state = {"values": torch.arange(3.0)}
        torch.save(state, path / name, _use_new_zipfile_serialization=False)
    if not masters:
        state = json.loads((path / "complete.json").read_text())
        del state["layout"]["masters"]
        (path / "complete.json").write_text(json.dumps(state))
    engine = Engine()
    saved = checkpoints(tmp_path, stage=1)
    chosen = saved.choose("latest")
    assert "earlier version" in chosen.notes[0]
    saved.load(engine, chosen)
    assert engine.loaded == [path.name]
    assert chosen.manifest.step == 2
    loader = TrainLoader(["sample/noto"], 64, 16, threads=1)
    loader.load_state_dict(chosen.manifest.state["loader"])
    assert (loader.state_dict()["epoch"], loader.state_dict()["index"]) == (0, 2)
    # What is saved now is newer than all of that.
    saved.save(engine, 1, {})
    assert saved.choose("latest").manifest.step == 1


@pytest.mark.parametrize(
    "text", ["null", "[]", "{}", "", '{"step": -1, "layout": {}}', "{" * 100_000]
)
def test_checkpoints_of_the_version_before_are_damaged_where_their_marker_is(tmp_path, text):
    path = tmp_path / "step00000002"
    path.mkdir()
    (path / "complete.json").write_text(text)
    with pytest.raises(ConfigError, match=r"no checkpoint is intact.*complete\.json"):
        checkpoints(tmp_path).choose("latest")
