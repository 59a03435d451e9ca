"""Checkpoints in a store are whole or none, whatever happens while they go there or come back."""

from __future__ import annotations

import contextlib
import threading
from pathlib import Path

import pytest
import torch.distributed as dist

from clipfast import storage
from clipfast.checkpoint import problems
from clipfast.checkpoint.manifest import NAME
from clipfast.engine import ConfigError
from clipfast.engine.checkpoint import Checkpoints
from clipfast.engine.checkpoint.store import CheckpointStore, look_in_store
from clipfast.engine.checkpoint.uploading import Sent, Uploading
from clipfast.storage.failures import UnreachableError
from clipfast.storage.patience import Patience
from tests.engine.plans import plan
from tests.engine.saved import Engine, checkpoints, names, resume
from tests.ranks import run_ranks
from tests.storage.memory import Memory

pytestmark = [pytest.mark.xdist_group("stores"), pytest.mark.usefixtures("process_group")]
RUN = "mem://runs/a"


class Killed(BaseException):
    """What ends a thread in the middle."""


@pytest.fixture
def memory(monkeypatch):
    made = Memory()
    monkeypatch.setitem(storage._storages, "mem", made)
    return made


class Run:
    """The saves and uploads of a run on this machine, without its training."""

    def __init__(self, here: Path, there: str = RUN, run: str = "a-run", **kept: int) -> None:
        self.here, self.engine = here, Engine()
        self.store = CheckpointStore(
            there, keep=kept.get("keep", 2), keep_every=kept.get("keep_every", 0)
        )
        self.store.run = run
        self.saved: Checkpoints = checkpoints(
            here / "checkpoints", run=run, store=self.store, **kept
        )
        (here / "metrics.jsonl").write_text("rows\n")
        records = {"metrics.jsonl": here / "metrics.jsonl", "run.json": here / "run.json"}
        self.uploading = Uploading(self.store, self.saved.folder, self.saved._process, records)

    def save(self, step: int) -> list[Sent]:
        path = self.saved.save(self.engine, step, {"loader": {"epoch": step}})
        self.uploading.begin(path, self.saved.saving.mine)
        return self.uploading.finish(5)

    def there(self) -> list[str]:
        return [stored.name for stored in self.store.find()]


@pytest.fixture
def start(tmp_path):
    runs = []

    def make(name: str = "first", *arguments, **options) -> Run:
        (tmp_path / name).mkdir()
        runs.append(Run(tmp_path / name, *arguments, **options))
        return runs[-1]

    yield make
    for run in runs:
        run.uploading.leave(0)


@pytest.mark.parametrize("place", ["s3", "folder", "memory"])
def test_a_checkpoint_goes_to_a_store_and_a_fresh_machine_goes_on_from_it(
    place, request, start, tmp_path
):
    if place != "folder":
        request.getfixturevalue(place)
    there = {"s3": "s3://shards/runs/a", "folder": str(tmp_path / "store/a"), "memory": RUN}[place]
    first = start("first", there)
    for step in (10, 20, 30):
        assert [(sent.what, sent.error) for sent in first.save(step)] == [(f"step{step:08d}", "")]
    assert first.there() == ["step00000020", "step00000030"]
    store = storage.storage_of(there)
    assert store.read(f"{there}/metrics.jsonl") == b"rows\n"
    fresh = start("fresh", there)
    assert resume(fresh.saved, fresh.engine, "latest").step == 30
    here = [machine / "checkpoints/step00000030" for machine in (first.here, fresh.here)]
    assert names(here[0]) == names(here[1])
    for name in names(here[0]):
        assert (here[0] / name).read_bytes() == (here[1] / name).read_bytes()
    # By its path too, for a run of its own that branches off.
    branch = checkpoints(tmp_path / "branch" / "checkpoints", run="other")
    chosen = branch.choose(f"{there}/checkpoints/step00000020")
    assert chosen.manifest.step == 20
    if place != "folder":
        assert chosen.path == tmp_path / "branch/.fetched/step00000020"
        assert names(tmp_path / "branch") == [".fetched"]
    if place == "s3":
        with pytest.raises(ConfigError, match=r"is a run's folder: name one of its.*step00000020"):
            branch.choose(there)
        with pytest.raises(ConfigError, match="no complete checkpoint there"):
            branch.choose(f"{there}/checkpoints/step00000099")


def test_what_is_here_comes_before_what_is_there_unless_that_is_newer(start, memory):
    first = start()
    first.save(10)
    memory.requests.clear()
    assert first.saved.choose("latest").notes == []
    second = start("second")
    second.saved.choose("latest")
    second.save(20)
    # The first machine is behind.
    chosen = first.saved.choose("latest")
    assert chosen.manifest.step == 20
    assert chosen.notes[0].startswith("Fetched mem://runs/a/checkpoints/step00000020: ")
    # It is ahead: the store was away.
    first.saved.save(first.engine, 30, {})
    assert first.saved.choose("latest").manifest.step == 30
    assert first.saved.choose("latest").notes == []


@pytest.mark.parametrize("damage", ["bit", "cut", "missing", "manifest"])
def test_a_corrupt_one_there_falls_back_to_the_one_before(start, memory, damage):
    first = start()
    for step in (10, 20):
        first.save(step)
    folder = f"{RUN}/checkpoints/step00000020"
    path = f"{folder}/rank00001.safetensors"
    if damage == "bit":
        memory.objects[path] = memory.objects[path][:-1] + b"!"
    elif damage == "cut":
        memory.objects[path] = memory.objects[path][:-1]
    elif damage == "missing":
        del memory.objects[path]
    else:
        memory.objects[f"{folder}/{NAME}"] = b"{}"
    fresh = start("fresh")
    chosen = fresh.saved.choose("latest")
    assert chosen.manifest.step == 10
    if damage == "manifest":
        return
    assert f"DAMAGED: {path}" in " ".join(chosen.notes)
    assert f"{folder} no longer counts" in " ".join(chosen.notes)
    assert fresh.there() == ["step00000010"]
    assert names(fresh.here / "checkpoints") == ["step00000010"]
    # It is written anew, and what lay there is no obstacle.
    fresh.save(20)
    assert fresh.there() == ["step00000010", "step00000020"]
    assert resume(start("third").saved, Engine(), "latest").step == 20


def test_a_damaged_one_here_is_fetched_from_the_store(start, memory):
    run = start()
    for step in (10, 20):
        run.save(step)
    (run.here / "checkpoints/step00000020/rank00000.safetensors").write_bytes(b"")
    chosen = run.saved.choose("latest")
    assert chosen.manifest.step == 20
    assert "DAMAGED" in " ".join(chosen.notes)
    assert problems(chosen.path, chosen.manifest) == []
    assert names(run.here / "checkpoints") == [
        *("step00000010", "step00000020", "step00000020.damaged")
    ]
    assert run.there() == ["step00000010", "step00000020"]


def test_where_all_are_corrupt_nothing_starts(start, memory):
    first = start()
    first.save(10)
    memory.objects[f"{RUN}/checkpoints/step00000010/rank00000.safetensors"] = b""
    with pytest.raises(ConfigError, match=r"no checkpoint is intact.*has 0 bytes, .* were saved"):
        start("fresh").saved.choose("latest")


def test_an_upload_that_is_killed_at_any_request_leaves_whole_ones_alone(start, memory):
    """Before each request in turn, of the files, the records, the manifest and the deletions."""
    count = 0
    while True:
        memory.objects.clear()
        run = start(f"run{count}", keep=1)
        run.save(10)
        memory.requests.clear()

        def die(path: str, at: int = count) -> None:
            if len(memory.requests) > at:
                raise Killed

        memory.before = die
        ended: list[Sent] = []
        with contextlib.suppress(Killed):
            ended = run.save(20)
        memory.before = lambda path: None
        whole = [stored for stored in run.store.find()]
        assert whole, f"killed before request {count}"
        for stored in whole:
            fetched = checkpoints(run.here / "fetched" / stored.name, run="other")
            assert fetched.choose(stored.path).manifest.step == stored.manifest.step
        # The next start goes on from the newest that is whole, sends, and cleans up.
        after = start(f"after{count}", keep=1)
        assert resume(after.saved, after.engine, "latest").step in (10, 20)
        after.save(30)
        assert {path.split("/")[5] for path in memory.objects if "checkpoints" in path} == {
            "step00000030"
        }
        if ended:
            break
        count += 1
    # Two files, the rows, the manifest, and three objects of the old one.
    assert count == 7


def test_keep_and_keep_every_count_in_the_store_too(start, memory):
    run = start(keep=2, keep_every=20)
    for step in (10, 20, 30, 40, 50, 60, 65):
        run.save(step)
    assert run.there() == [f"step{step:08d}" for step in (20, 40, 60, 65)]
    # The manifest goes first.
    gone = [path for path in memory.requests if "step00000050" in path][-3:]
    assert gone[0].endswith(NAME)


def test_a_store_that_is_away_costs_an_upload_and_the_next_one_tries_anew(s3, start):
    run = start("first", "s3://shards/runs/away")
    run.save(10)
    store = storage.storage_of("s3://shards")
    before, store._patience = store._patience, Patience(0.3)
    s3.away = True
    (sent,) = run.save(20)
    assert sent.error.startswith("rank 0: s3://shards/runs/away/checkpoints")
    assert "no answer after" in sent.error
    s3.away, store._patience = False, before
    assert run.there() == ["step00000010"]
    assert [sent.error for sent in run.save(30)] == [""]
    assert run.there() == ["step00000010", "step00000030"]


def test_a_checkpoint_that_is_on_its_way_is_not_deleted_here(start, memory):
    run = start(keep=1)
    goes_on = threading.Event()
    memory.before = lambda path: goes_on.wait(20)
    for step, left_out in ((10, ""), (20, ""), (30, "step00000020")):
        path = run.saved.save(run.engine, step, {})
        assert run.uploading.begin(path, run.saved.saving.mine) == left_out
    assert run.uploading.progress == 0
    # The one that is left out goes with the next.
    assert names(run.here / "checkpoints") == [f"step{step:08d}" for step in (10, 20, 30)]
    assert run.uploading.unsent == ["step00000010", "step00000030"]
    goes_on.set()
    assert [sent.what for sent in run.uploading.finish(5)] == ["step00000010", "step00000030"]
    assert run.there() == ["step00000030"]
    assert names(run.here / "checkpoints") == ["step00000030"]


def test_a_run_that_ends_says_what_it_did_not_send(start, memory):
    run = start()
    goes_on = threading.Event()
    memory.before = lambda path: goes_on.wait(20)
    path = run.saved.save(run.engine, 10, {})
    run.uploading.begin(path, run.saved.saving.mine)
    threading.Timer(0.2, goes_on.set).start()
    (sent,) = run.uploading.leave(5)
    assert (sent.what, sent.error) == ("step00000010", "the run ended before")
    assert run.there() == []


def test_a_file_that_the_disk_has_changed_is_not_sent(start, memory):
    run = start()
    path = run.saved.save(run.engine, 10, {})
    (path / "rank00001.safetensors").write_bytes(b"other")
    run.uploading.begin(path, run.saved.saving.mine)
    (sent,) = run.uploading.finish(5)
    assert "rank00001.safetensors has other content than was saved" in sent.error
    assert run.there() == []


def test_another_run_and_another_start_of_it_are_not_mixed(start, memory):
    first = start()
    first.save(10)
    other = start("other", run="b-run")
    with pytest.raises(ConfigError, match=r"has checkpoints of run a-run, this is\s+run b-run"):
        other.store.require_own(other.store.find())
    (sent,) = other.save(10)
    assert "has checkpoints of run a-run" in sent.error
    # Two machines that go on with one run.
    second = start("second")
    second.saved.choose("latest")
    second.save(20)
    (sent,) = first.save(15)
    assert "another start of this run is alive" in sent.error
    assert second.there() == ["step00000010", "step00000020"]


def test_what_a_run_leaves_behind_when_it_goes_back_no_longer_counts_there(start, memory):
    run = start(keep=3)
    for step in (10, 20, 30):
        run.save(step)
    chosen = run.saved.choose(f"{RUN}/checkpoints/step00000010")
    # It is here, too.
    assert chosen.path == run.here / "checkpoints/step00000010"
    assert chosen.notes == []
    said = " ".join(run.saved.rewind(chosen))
    assert f"{RUN}/checkpoints/step00000030 no longer counts" in said
    assert run.there() == ["step00000010"]
    run.save(20)
    assert resume(start("fresh").saved, Engine(), "latest").step == 20
    assert f"{RUN}/checkpoints/step00000030/manifest.superseded.json" in memory.objects


def test_an_unreachable_store_is_no_empty_one(start, memory, monkeypatch):
    def away(folder: str) -> list:
        raise UnreachableError(f"{folder}: no answer")

    run = start()
    monkeypatch.setattr(memory, "list", away)
    with pytest.raises(ConfigError, match=r"--resume latest: mem://.*no answer"):
        run.saved.choose("latest")


def _upload_on_two(folder: str) -> list[tuple[list[str], list[str], int | None]]:
    return [_upload(Path(folder, str(fails)), fails) for fails in (False, True)]


def _upload(folder: Path, fails: bool) -> tuple[list[str], list[str], int | None]:
    rank = dist.get_rank()
    made = plan(ranks=2, rank=rank)
    here, there = folder / "here", str(folder / "there")
    store = CheckpointStore(there)
    store.run = "a-run"
    saved = Checkpoints(here, 2, made.process, made.layout, run="a-run", store=store)
    engine = Engine()
    # Each rank has a file of its own.
    write = engine.checkpoint_engine.save
    engine.checkpoint_engine.save = lambda state, path: (
        write(state, path) if f"rank{rank:05d}" in path else None
    )
    path = saved.save(engine, 10, {})
    assert list(saved.saving.mine) == [f"rank{rank:05d}.safetensors"]
    if fails and rank == 1:
        (path / "rank00001.safetensors").write_bytes(b"other")
    uploading = Uploading(store, saved.folder, made.process, {})
    uploading.begin(path, saved.saving.mine)
    errors = [sent.error for sent in uploading.finish(5)]
    uploading.leave(0)
    dist.barrier()
    fresh = Checkpoints(folder / "fresh", 2, made.process, made.layout, run="a-run", store=store)
    chosen = fresh.choose("latest") if not fails else None
    return errors, [stored.name for stored in store.find()], chosen and chosen.manifest.step


def test_two_ranks_send_and_fetch_their_files_and_one_that_fails_leaves_no_manifest(tmp_path):
    for whole, (errors, there, step) in run_ranks(2, _upload_on_two, str(tmp_path)):
        assert whole == ([""], ["step00000010"], 10)
        assert errors[0].startswith("rank 1: ")
        assert (there, step) == ([], None)


def test_a_manifest_there_that_is_none_is_told_from_none_there(memory):
    memory.objects[f"{RUN}/checkpoints/step00000010/{NAME}"] = b"x" * 100
    assert "is no JSON" in look_in_store(f"{RUN}/checkpoints/step00000010").damage
    assert look_in_store(f"{RUN}/checkpoints/step00000020") is None
