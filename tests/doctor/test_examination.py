"""Ranks that crash, hang, leave, or bring something else: each is a finding, and nobody waits."""

import json
import os
import threading
import time
from dataclasses import replace

import pytest
import torch
import torch.distributed as dist

import clipfast.doctor.examination as examination
from clipfast.doctor.check import Check
from clipfast.doctor.checks import CHECKS, devices, disk, group, operators, shared_memory
from clipfast.doctor.checks.ceilings import check_product
from clipfast.doctor.checks.collectives import COLLECTIVES
from clipfast.doctor.checks.devices import DEVICES
from clipfast.doctor.checks.installed import INSTALLED
from clipfast.doctor.checks.limits import LIMITS
from clipfast.doctor.checks.loss import LOSS
from clipfast.doctor.checks.operators import OPERATORS_HERE
from clipfast.doctor.checks.shared_memory import SHARED_MEMORY
from clipfast.doctor.checks.step import STEP
from clipfast.doctor.checks.variables import VARIABLES
from clipfast.doctor.exchange import Exchange
from clipfast.doctor.finding import Finding, ok, size
from clipfast.doctor.options import default_config
from clipfast.doctor.report import write_json
from clipfast.doctor.situation import Situation
from clipfast.engine.launch import Process
from clipfast.engine.plan import decide
from tests.ranks import run_ranks


class SharedExchange(Exchange):
    """Ranks that are threads of one process."""

    def __init__(self, rank, ranks, told):
        super().__init__(rank, tuple(range(ranks)))
        self._told = told


def situation(rank=0, ranks=1, told=None, batch=32):
    config = replace(default_config(), batch_size=batch)
    process = Process(rank, rank, ranks, ranks, torch.device("cpu"))
    exchange = SharedExchange(rank, ranks, {} if told is None else told)
    made = Situation(config, process, decide(config, process), {}, exchange)
    made.notes["group"] = True
    return made


def examine(*situations, checks):
    """Findings of rank 0 and the statuses of the ranks that are there."""
    statuses, found = {}, []

    def run(each):
        mine = examination.Examination(each, found.append)
        statuses[each.process.rank] = mine.run(checks)

    threads = [threading.Thread(target=run, args=(each,)) for each in situations]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()
    return found, statuses


def pair(**options):
    told = {}
    return [situation(rank, 2, told, **options) for rank in range(2)]


def never(each):
    raise AssertionError("a rank entered")


def check_that(look, together=False, limit=0.3):
    return Check(
        "planted",
        look,
        lambda situation, seen: [ok(f"seen on {sorted(seen)}")],
        limit,
        (lambda situation: {}) if together else None,
    )


def test_a_crash_on_one_rank_is_its_finding_and_others_are_judged():
    def look(each):
        if each.process.rank == 1:
            raise RuntimeError("no such device\nmore")
        return {}

    found, statuses = examine(*pair(), checks=[check_that(look)])
    assert [(each.level, each.seen, each.ranks) for each in found] == [
        ("failure", "the check crashes: RuntimeError: no such device", (1,)),
        ("ok", "seen on [0]", ()),
    ]
    assert statuses == {0: 1, 1: 1}


def test_a_rank_that_hangs_is_left_behind_and_later_collectives_are_not_entered():
    def look(each):
        time.sleep(3 if each.process.rank == 1 else 0)
        return {}

    later = replace(check_that(lambda each: {}, together=True), name="later")
    alone = replace(check_that(lambda each: {}), name="alone")
    began = time.monotonic()
    found, statuses = examine(*pair(), checks=[check_that(look, together=True), later, alone])
    assert time.monotonic() - began < 2.5
    assert [(each.check, each.level) for each in found] == [
        ("planted", "failure"),
        ("later", "warning"),
        ("alone", "ok"),
    ]
    assert found[0].ranks == (1,)
    assert "no answer within 0 s" in found[0].seen
    assert "check planted left ranks waiting" in found[1].seen
    assert statuses == {0: 1, 1: 1}


def test_a_rank_that_has_left_is_waited_for_once(monkeypatch):
    monkeypatch.setattr(examination, "_APART_SECONDS", 0.2)
    checks = [replace(check_that(lambda each: {}), name=name) for name in "abc"]
    began = time.monotonic()
    found, statuses = examine(situation(0, 2, {}), checks=checks)
    assert time.monotonic() - began < 2
    lost = [each for each in found if each.level == "failure"]
    assert [(each.check, each.ranks) for each in lost] == [("a", (1,))]
    assert "rank 1 of 2 said nothing more" in lost[0].seen
    assert statuses == {0: 1}


def test_a_rank_without_rank_0_ends(monkeypatch):
    monkeypatch.setattr(examination, "_VERDICT_SECONDS", 0.2)
    mine = examination.Examination(situation(1, 2, {}), print)
    with pytest.raises(examination.RankZeroLostError):
        mine.run([check_that(lambda each: {}, together=True)])


def test_another_number_of_features_on_one_rank_is_named_before_anyone_enters():
    first, second = pair()
    second = situation(1, 2, first.exchange._told, batch=12)
    for check in (LOSS, STEP):
        found, _ = examine(first, second, checks=[replace(check, look=never)])
        assert found[0].level == "failure"
        assert found[0].ranks == (1,)
        assert "is 16 on rank 0 and 6 on rank 1" in found[0].seen
        first.exchange._told.clear()


def test_a_judge_that_crashes_is_a_finding():
    def judge(situation, seen):
        raise KeyError("rows")

    planted = replace(check_that(lambda each: {}), judge=judge)
    (found,), statuses = examine(situation(), checks=[planted])
    assert "the check crashes: KeyError" in found.seen
    assert statuses == {0: 1}


@pytest.mark.needs("extension")
def test_an_operator_that_the_extension_lacks_is_named(monkeypatch):
    asked = torch._C._dispatch_has_kernel_for_dispatch_key

    def lacks(name, key):
        return name != "clipfast::adamw_" and not name.endswith("normalize") and asked(name, key)

    seen = OPERATORS_HERE.look(situation())
    assert not seen["missing"]
    monkeypatch.setattr(torch._C, "_dispatch_has_kernel_for_dispatch_key", lacks)
    (found,), statuses = examine(situation(), checks=[OPERATORS_HERE])
    assert statuses == {0: 1}
    assert "clipfast._C lacks adamw_, l2_normalize: it was built from another" in found.seen
    assert operators.REMEDY in found.remedy


def test_every_check_has_a_name_of_its_own_and_a_limit():
    names = [check.name for check in CHECKS]
    assert len(set(names)) == len(names)
    assert all(0 < check.limit <= 300 for check in CHECKS)


def look_on_ranks():
    """What two ranks see of their collectives and their loss."""
    told = {}
    here = situation(dist.get_rank(), dist.get_world_size(), told, batch=14)
    return {check.name: check.look(here) for check in (COLLECTIVES, LOSS)}


def test_collectives_and_loss_over_two_ranks_are_right():
    seen = dict(enumerate(run_ranks(2, look_on_ranks)))
    here = situation(0, 2, batch=14)
    (found,) = LOSS.judge(here, {rank: each["loss"] for rank, each in seen.items()})
    assert found.level == "ok"
    assert "over 2 x 7 pairs are those of float64: cpu in float32" in found.seen
    found = COLLECTIVES.judge(here, {rank: each["collectives"] for rank, each in seen.items()})
    assert [each.level for each in found] == ["ok"] * 4
    assert "not measured, clipfast waits for collectives on a CPU" in found[-1].seen


@pytest.fixture
def one_thread():
    """Threads that wait for each other on a busy core take tenfold the time."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_loss_and_step_of_one_process_are_right(process_group, one_thread, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "0")
    here = situation(batch=4)
    (found,) = LOSS.judge(here, {0: LOSS.look(here)})
    assert found.level == "ok"
    if torch.cuda.is_available():
        pytest.skip("DeepSpeed takes the GPU here")
    (found,) = STEP.judge(here, {0: STEP.look(here)})
    assert "2 steps of ViT-tiny in torch.float32: finite, the same bits twice" in found.seen
    assert here.notes["images_per_second"] > 0


def test_loss_beyond_its_limit_or_no_number_is_a_failure():
    row = {"impl": "cpu", "dtype": "float32", "limit": 2e-5, "repeats": True}
    for error in (1e-3, float("nan")):
        rows = [{**row, "errors": {"loss": 0.0, "images": error}}]
        (found,) = LOSS.judge(situation(), {0: {"rows": rows}})
        assert found.level == "failure"
        assert "cpu in float32 is off by more than 2e-05" in found.seen
    rows = [{**row, "errors": {"loss": 0.0}, "repeats": False}]
    assert [each.level for each in LOSS.judge(situation(), {0: {"rows": rows}})] == [
        "warning",
        "ok",
    ]


def step_seen(losses, again=None, weights="a", same=True):
    again = losses if again is None else again
    figures = {"step_seconds": 0.1, "images_per_second": 8.0, "peak": 0, "shared": False}
    return {"losses": losses, "again": again, "weights": weights, "same_weights": same, **figures}


@pytest.mark.parametrize(
    ("ranks", "level", "words"),
    [
        ([step_seen([2.0, float("nan")])], "failure", "the loss is [2.0, nan]"),
        ([step_seen([2.0, 1.0]), step_seen([2.0, 1.5])], "failure", "ranks have other losses"),
        ([step_seen([2.0, 1.0]), step_seen([2.0, 1.0], weights="b")], "failure", "other weights"),
        ([step_seen([2.0, 1.0], [2.0, 1.1])], "warning", "first in the loss of step 2"),
        ([step_seen([2.0, 1.0], same=False)], "warning", "first in the last update"),
        ([step_seen([2.0, 1.0])], "ok", "finite, the same bits twice"),
    ],
)
def test_step_says_what_is_not_finite_alike_or_repeatable(ranks, level, words):
    (found,) = STEP.judge(situation(), dict(enumerate(ranks)))
    assert found.level == level
    assert words in found.seen


def test_collectives_warn_where_nothing_hides_behind_products():
    rows = [{"name": "all_reduce", "bytes": 1 << 20, "seconds": 1e-3}]
    here = situation(0, 2, {})
    seen = {rank: {"rows": rows, "overlap": share} for rank, share in enumerate((0.9, 0.1))}
    found = COLLECTIVES.judge(here, seen)
    assert found[0].seen == "all_reduce: 1.0 MB 1.0 GB/s"
    assert (found[1].level, found[1].ranks) == ("warning", (1,))


def test_a_device_that_multiplies_wrongly_gets_no_rate(monkeypatch):
    a, b = torch.randn(2, 8, 8)
    check_product(a, b)
    monkeypatch.setattr(torch, "mm", lambda a, b: 2 * (a @ b))
    with pytest.raises(AssertionError, match="computes wrongly"):
        check_product(a, b)


def test_shared_memory_counts_what_can_be_had_and_not_what_is_said(monkeypatch):
    def refuse(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.posix_fallocate", refuse)
    here = situation()
    (found,) = SHARED_MEMORY.judge(here, {0: SHARED_MEMORY.look(here)})
    assert found.level == "failure"
    assert "(No space left on device)" in found.seen


def test_shared_memory_bears_files_that_others_delete_meanwhile(monkeypatch, tmp_path):
    monkeypatch.setattr(shared_memory, "FOLDER", tmp_path)
    for name in ("gone", "stays"):
        (tmp_path / name).write_bytes(b"1234")
    entries = list(os.scandir(tmp_path))
    (tmp_path / "gone").unlink()
    with monkeypatch.context() as patch:
        # Not beyond this: pytest deletes the folder.
        patch.setattr("os.scandir", lambda folder: entries)
        found = SHARED_MEMORY.look(situation())
    assert found["files"] == ["stays (4 bytes)"]


@pytest.mark.parametrize("has_deepspeed", [True, False])
def test_a_group_multiplies_as_the_run_will(process_group, monkeypatch, has_deepspeed):
    told = []
    monkeypatch.setattr(group, "start", lambda process, uses_tf32: told.append(uses_tf32))
    monkeypatch.setattr(group, "_start_plain", lambda here: None)
    monkeypatch.setattr(group, "set_products", told.append)
    monkeypatch.setattr(group, "version", lambda name: "0.19" if has_deepspeed else None)
    monkeypatch.setattr("torch.cuda.set_device", lambda device: None)
    monkeypatch.setattr(Situation, "on_gpu", True)
    here = situation()
    for uses_tf32 in (True, False):
        here.plan = replace(here.plan, uses_tf32=uses_tf32)
        group.look(here)
    assert told == [True, False]


def test_disk_that_cannot_be_written_is_a_failure(monkeypatch):
    def refuse(folder):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(disk, "_write_speed", refuse)
    here = situation()
    (found,) = disk.judge(here, {0: disk.look(here)})
    assert found.level == "failure"
    assert "cannot be written" in found.seen


def test_limits_and_variables_and_devices_name_what_bites():
    here = situation()
    few = {"files": 100, "locked_bytes": -1, "processes": -1}
    assert LIMITS.judge(here, {0: few})[0].level == "failure"
    assert LIMITS.judge(here, {0: {**few, "files": 1024}})[0].level == "warning"
    seen = {"threads": 1, "cores": 8, "host": "a", "local_ranks": 2, "on_gpu": False}
    variables = {"NCCL_P2P_DISABLE": "1", "OMP_NUM_THREADS": "1"}
    found = VARIABLES.judge(here, {0: {**seen, "set": variables}, 1: {**seen, "set": {}}})
    texts = [each.seen for each in found]
    assert texts[0].startswith("NCCL_P2P_DISABLE=1: GPUs of a node exchange through")
    assert "NCCL_P2P_DISABLE is 1 on rank 0 and not given on rank 1" in texts
    assert texts[-1] == "OMP_NUM_THREADS=1 threads are fewer than a rank's share of 4 core(s)"
    card = {"host": "a", "local_rank": 0, "visible": None, "problem": "", "name": "H100"}
    card |= {"free": 10, "total": 100, "pci": "0000:1b:00"}
    found = DEVICES.judge(here, {0: {**card, "uuid": "x"}, 1: {**card, "host": "b", "uuid": "y"}})
    assert [each.level for each in found] == ["warning", "warning"]
    assert devices.identity(torch.device("cpu")) == {}


def test_findings_are_printed_in_a_column():
    lines = Finding("failure", "word " * 40, "do " * 3, (0, 3), "disk").lines()
    assert lines[0].startswith("FAILURE  disk        [ranks 0, 3] word")
    assert all(len(line) <= 100 for line in lines)
    assert lines[-1] == "         -> do       do do do"
    assert [size(n) for n in (5, 66e6, 1.2e9, 5e12)] == ["5 bytes", "66 MB", "1.2 GB", "5000 GB"]


def test_a_report_holds_words_for_what_is_no_number(tmp_path):
    here = situation()
    done = examination.Examination(here, print)
    done.seen["step"] = {0: {"losses": [float("nan"), 2.0]}}
    write_json(tmp_path / "a.json", here, done, 1.0)
    record = json.loads((tmp_path / "a.json").read_text(), parse_constant=never)
    assert record["seen"]["step"]["0"]["losses"] == ["nan", 2.0]


def test_installed_names_what_is_absent_and_what_differs():
    here = situation()
    seen = INSTALLED.look(here)
    versions = {
        **seen["versions"],
        "deepspeed": "0.19",
        "DALI": "2",
        "tokenizers": "1",
        "ftfy": "6",
    }
    whole = {**seen, "versions": versions, "driver": None}
    assert [each.level for each in INSTALLED.judge(here, {0: whole, 1: whole})] == ["ok"]
    older = {**whole, "versions": {**versions, "torch": "2.6.0", "DALI": None}}
    blind = {**whole, "driver": "580.1", "device": {**whole["device"], "gpus": []}}
    absent, no_gpu, differs = INSTALLED.judge(here, {0: whole, 1: older, 2: blind})
    assert (absent.level, absent.ranks) == ("warning", (1,))
    assert (no_gpu.level, no_gpu.ranks) == ("failure", (2,))
    assert "there is an NVIDIA driver (580.1)" in no_gpu.seen
    assert differs.seen.endswith("and 2.6.0 on rank 1")
    lacking = {**whole, "versions": {**versions, "deepspeed": None}}
    (without,) = INSTALLED.judge(here, {0: lacking})
    assert without.level == "failure"
