"""Training goes on while a checkpoint is written, which has the bytes of one that it waited for."""

import io
import itertools
import os
import shutil
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import torch

from clipfast.checkpoint import Manifest
from clipfast.checkpoint.tensor_file import dump_tensors
from clipfast.engine.checkpoint import Checkpoints, SaveFailed
from clipfast.engine.checkpoint.host_copies import HostCopies
from clipfast.engine.deepspeed.files import CheckpointFiles, write_hashed
from clipfast.engine.deepspeed.wrap import initialise_engine
from clipfast.engine.optimizer import build_optimizer
from clipfast.engine.requests import Request, Requests
from clipfast.engine.saves import Saves
from tests.engine.launching import free_port, start_rank
from tests.engine.plans import plan
from tests.engine.saved import Engine, checkpoints, names, resume
from tests.engine.state_cases import PRECISIONS, Case, plan_of, tiny_model
from tests.engine.state_cases import cases as every_case
from tests.ranks import run_ranks

alone = pytest.mark.usefixtures("process_group")


class Slow(CheckpointFiles):
    """Files whose writing waits to be allowed."""

    def __init__(self) -> None:
        super().__init__()
        self.may_write = threading.Event()

    def write_copies(self) -> None:
        self.may_write.wait(20)
        super().write_copies()


def slow() -> Engine:
    engine = Engine()
    engine.checkpoint_engine = Slow()
    return engine


def advance(saved: Checkpoints) -> Path | None:
    """As a step of a run alone does it."""
    return saved.saving.advance(saved.saving.progress)


def wait_for(saved: Checkpoints, progress: int) -> None:
    deadline = threading.Event()
    for _ in range(2000):
        if saved.saving.progress >= progress:
            return
        deadline.wait(0.005)
    raise AssertionError(f"{saved.saving.progress}, not {progress}")


@alone
def test_the_watch_hears_of_a_rank_that_writes_for_long(tmp_path, monkeypatch):
    """Others that have written wait for it, and it must not be taken for one that hangs."""
    saved, engine, marks = checkpoints(tmp_path), Engine(), []
    has_marked = threading.Event()
    monkeypatch.setattr(
        "clipfast.engine.progress.again", lambda: marks.append(1) or has_marked.set()
    )
    write = engine.save_checkpoint

    def wait_and_write(*arguments, **options) -> None:
        assert has_marked.wait(20)
        write(*arguments, **options)

    engine.save_checkpoint = wait_and_write
    assert saved.save(engine, 10, {}) == saved.latest()
    assert marks


@alone
def test_a_save_in_the_background_stands_once_steps_have_taken_it_there(tmp_path):
    saved, engine = checkpoints(tmp_path), slow()
    at_once = saved.save(Engine(), 10, {})
    loader = {"epoch": 1}
    saved.saving.begin(engine, 20, {"loader": loader})
    # Training goes on: what is saved is what was there.
    engine.values.zero_()
    loader["epoch"] = 2
    assert advance(saved) is None
    assert saved.saving.step == 20
    assert saved.latest() == at_once
    engine.checkpoint_engine.may_write.set()
    wait_for(saved, 1)
    assert advance(saved) is None
    wait_for(saved, 2)
    path = advance(saved)
    assert path == saved.latest() == tmp_path / "step00000020"
    assert saved.saving.step is None
    assert Manifest.read(path).state["loader"] == {"epoch": 1}
    files = [safetensors.torch.load_file(p / "rank00000.safetensors") for p in (at_once, path)]
    assert torch.equal(
        *(file[f"weight/{p.name}[0:5000]"] for file, p in zip(files, (at_once, path), strict=True))
    )
    assert resume(saved, engine, "latest").step == 20
    saved.saving.close()


@alone
def test_saves_in_the_background_finish_where_they_are_waited_for(tmp_path):
    saved, engine = checkpoints(tmp_path), Engine()
    assert saved.saving.finish() is None
    for step in (10, 20, 30):
        saved.saving.begin(engine, step, {})
        assert saved.saving.finish() == tmp_path / f"step{step:08d}"
    assert names(tmp_path) == ["step00000020", "step00000030"]
    assert saved.saving.progress == 6
    saved.saving.close()


@alone
@pytest.mark.parametrize("milestone", ["writing", "placing"])
def test_a_save_in_the_background_that_fails_leaves_nothing_and_harms_nothing(
    tmp_path, monkeypatch, milestone
):
    saved, engine = checkpoints(tmp_path), slow()
    saved.save(Engine(), 10, {})
    saved.saving.begin(engine, 20, {})
    if milestone == "writing":
        shutil.rmtree(next(tmp_path.glob(".step*")))
    else:
        monkeypatch.setattr(Manifest, "write", _no_space)
    engine.checkpoint_engine.may_write.set()
    with pytest.raises(SaveFailed, match=r"no checkpoint was saved: rank 0: .*step00000020"):
        saved.saving.finish()
    assert names(tmp_path) == ["step00000010"]
    monkeypatch.undo()
    saved.saving.begin(engine, 30, {})
    assert saved.saving.finish() == tmp_path / "step00000030"
    saved.saving.close()


def _no_space(*_: object, **__: object) -> None:
    raise OSError(28, os.strerror(28))


@alone
def test_a_save_in_the_background_is_given_up_where_the_run_ends_in_another_way(tmp_path):
    saved, engine = checkpoints(tmp_path), slow()
    saved.saving.begin(engine, 10, {})
    files = engine.checkpoint_engine
    threading.Timer(0.2, files.may_write.set).start()
    saved.saving.close()
    assert (files.written, type(files.error)) == ({}, InterruptedError)
    # The next start finds no checkpoint, and tidies up.
    after = checkpoints(tmp_path)
    after.tidy()
    assert names(tmp_path) == []


@alone
def test_a_save_waits_for_the_one_before_and_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr("clipfast.engine.saves._LONG_SECONDS", 0.05)
    run = _Run(tmp_path, every_steps=10, background=True)
    run.save(10)
    assert run.saved.saving.step == 10
    threading.Timer(0.2, run.engine.checkpoint_engine.may_write.set).start()
    run.save(20)
    assert (run.saved.latest(), run.saved.saving.step) == (tmp_path / "step00000010", 20)
    assert "waited 0." in run.said[0]
    assert "for the one after step 10" in run.said[0]
    run.saves.finish(run.said.append)
    run.save(30, last=True)
    # The last is saved while the run waits.
    assert (run.saved.latest(), run.saved.saving.step) == (tmp_path / "step00000030", None)
    assert len(run.said) == 1


@alone
def test_a_save_in_the_background_that_fails_is_said_and_tried_again(tmp_path, monkeypatch):
    run = _Run(tmp_path, every_steps=10, background=True)
    run.save(10)
    shutil.rmtree(next(tmp_path.glob(".step*")))
    run.engine.checkpoint_engine.may_write.set()
    wait_for(run.saved, 1)
    run.step()
    assert run.said[0].startswith("NOT SAVED after step 10: no checkpoint was saved: rank 0: ")
    assert run.requests.agree() == Request.GO_ON
    monkeypatch.setattr("clipfast.engine.requests.RETRY_SECONDS", 0.0)
    run.requests.failed()
    assert run.requests.agree() == Request.SAVE


class _Run:
    """The saves of a run, without its training."""

    def __init__(self, folder: Path, **options) -> None:
        made = plan()
        self.saved, self.engine, self.said = checkpoints(folder), slow(), []
        self.requests = Requests(made.process, every_minutes=0)
        opening = type("Opening", (), {"checkpoints": self.saved, "require": lambda self: None})()
        self.saves = Saves(opening, self.requests, replace(made.config.checkpoint, **options))

    def save(self, step: int, last: bool = False) -> None:
        self.saves.save(self.engine, step, {}, self.said.append, stops=False, last=last)

    def step(self) -> None:
        self.requests.agree(self.saves.progress)
        self.saves.go_on(self.said.append)


def test_a_run_saves_at_the_steps_that_its_options_name(tmp_path):
    run = _Run(tmp_path, every_steps=4, keep_every=6)
    due = [step for step in range(1, 14) if run.saves.are_due(step, last=step == 13)]
    assert due == [4, 6, 8, 12, 13]
    run = _Run(tmp_path, every_steps=0, keep_every=6)
    due = [step for step in range(1, 14) if run.saves.are_due(step, last=step == 13)]
    assert due == [6, 12, 13]
    run = _Run(tmp_path, every_steps=0)
    assert not run.saves.are_due(13, last=True)


def _bytes_of(tensors: dict[str, torch.Tensor]) -> bytes:
    file = io.BytesIO()
    dump_tensors(tensors, file)
    return file.getvalue()


def test_copies_follow_nothing_and_use_the_same_memory_again(monkeypatch):
    monkeypatch.setattr("clipfast.engine.checkpoint.host_copies._SLAB", 1024)
    flat = torch.arange(300.0)
    files = [
        {"view": flat[2:8].view(2, 3).T, "empty": torch.empty(0), "flat": flat},
        {
            "half": torch.full((3,), 2, dtype=torch.bfloat16),
            "flag": torch.tensor([True, False, True]),
            "step": torch.tensor(3, dtype=torch.int64),
            "weight": torch.nn.Parameter(torch.ones(3)),
        },
    ]
    written = [_bytes_of(content) for content in files]
    copies = HostCopies()
    taken = copies.take(files)
    places = [t.data_ptr() for file in taken for t in file.values()]
    slabs = [slab.data_ptr() for slab in copies._slabs]
    flat.zero_()
    files[1]["weight"].data.zero_()
    copies.wait()
    assert [_bytes_of(content) for content in taken] == written
    again = copies.take(files)
    assert [t.data_ptr() for file in again for t in file.values()] == places
    assert [slab.data_ptr() for slab in copies._slabs] == slabs
    assert torch.equal(again[0]["flat"], flat)
    # Another model has others.
    (other,) = copies.take([{"flat": torch.ones(5)}])
    assert torch.equal(other["flat"], torch.ones(5))


def test_what_the_host_has_no_room_to_copy_is_written_while_training_waits(
    tmp_path, monkeypatch, caplog
):
    def full(*_: object, **__: object) -> None:
        raise MemoryError("no room")

    monkeypatch.setattr("clipfast.engine.checkpoint.host_copies._allocate", full)
    files = CheckpointFiles()
    files.begin(copies=HostCopies())
    files.save({"values": torch.arange(3.0)}, str(tmp_path / "a.safetensors"))
    files.copy()
    assert list(files.written) == ["a.safetensors"]
    assert "is written while training waits" in caplog.text
    files.write_copies()
    assert list(files.written) == ["a.safetensors"]


def test_a_file_that_nobody_waits_for_is_not_written_to_its_end(tmp_path):
    given_up = threading.Event()
    given_up.set()
    with pytest.raises(InterruptedError):
        write_hashed({"values": torch.arange(3.0)}, tmp_path / "a.safetensors", given_up=given_up)
    assert (tmp_path / "a.safetensors").stat().st_size == 0


FORMATS = (("fp16", ("remainder", "stochastic")),)


def test_every_stage_and_precision_saves_the_same_bytes_in_the_background(tmp_path):
    of = every_case(FORMATS)
    assert {case[:2] for case in of} == set(itertools.product(PRECISIONS, range(4)))
    for found in run_ranks(2, _save_both_ways, of, str(tmp_path), free_port()):
        assert len(found) == len(of)
        for case, (at_once, later) in zip(of, found, strict=True):
            assert at_once == later, case
            assert at_once


def _save_both_ways(of: list[Case], folder: str, port: int) -> list[tuple[dict, dict]]:
    process = start_rank(port)
    found = []
    for number, case in enumerate(of):
        made = replace(plan_of(case, process.world_size), process=process)
        model = tiny_model()
        engine = initialise_engine(made, model, build_optimizer(made, model))
        _step(engine, made.dtype)
        saved = Checkpoints(Path(folder, str(number)), 2, process, made.layout)
        at_once = saved.save(engine, 1, {})
        saved.saving.begin(engine, 2, {})
        # What was copied stays as it was, whatever comes behind it.
        _step(engine, made.dtype)
        later = saved.saving.finish()
        saved.saving.close()
        found.append(tuple(_entries(path) for path in (at_once, later)))
        engine.module.zero_grad(set_to_none=True)
        engine.destroy()
    return found


def _entries(path: Path) -> dict[str, tuple]:
    files = Manifest.read(path).files
    return {name: tuple(vars(entry).values()) for name, entry in files.items()}


def _step(engine, dtype: torch.dtype) -> None:
    images = torch.randn(2, 3, 64, 64, dtype=dtype)
    tokens = torch.tensor([[1, 2, 3, 499], [4, 5, 6, 499]])
    image_features, text_features, logit_scale = engine(images, tokens)
    engine.backward(logit_scale.sum() * (image_features * text_features).float().sum())
    engine.step()
