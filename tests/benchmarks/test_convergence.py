"""clipfast and OpenCLIP's train script get the same training; rows are compared as is said."""

from __future__ import annotations

import ast
import importlib.util
import itertools
import json
import math
import statistics
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch.utils.tensorboard import SummaryWriter

from benchmarks import convergence
from benchmarks.parts.common.harness import CheckFailed
from benchmarks.parts.common.rows import append_rows, read_file, stamped
from benchmarks.parts.convergence import compare, experiment, report, settings, train
from benchmarks.parts.convergence.requirements import require_packages
from benchmarks.parts.convergence.settings import Settings, model_file, recipe
from benchmarks.parts.convergence.shards import COUNT, write_shards
from benchmarks.parts.tables import convergence as tables
from benchmarks.peers import import_open_clip
from clipfast.data import ShardReader
from clipfast.data.order import EpochOrder
from clipfast.data.shards import counts, expand
from clipfast.engine.cli import parse
from clipfast.models import create_model
from clipfast.optim import parameter_groups
from clipfast.tokenizer import tokenize_with_lengths

STAMP = {"commit": "0000000", "date": "2026-01-01", "device": {"cpu": "A CPU"}}


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    return write_shards(settings.TRAINED_ON, tmp_path_factory.mktemp("shards"))


def made_row(name: str, seed: int, shift: float = 0.0, **fields) -> dict:
    figures = {figure: 0.3 + 0.01 * seed + shift for figure in compare.FIGURES}
    seconds = {"seconds": 60.0, "train_seconds": 40.0}
    seconds |= {"cpu_seconds": 50.0, "train_cpu_seconds": 30.0}
    row = {"name": name, "seed": seed, "epochs": 8, "steps": 56, "threads": 1}
    row |= {"machine": "shared", "losses": [3.0, 2.0], "logit_scale": 14.0, **figures, **seconds}
    return {**row, "device": "cpu", "checked": True, "environment": STAMP, **fields}


def test_both_commands_say_what_the_recipe_says(tmp_path, shards):
    import_open_clip()
    from open_clip_train.params import parse_args

    options = recipe()
    theirs = parse_args(Settings("openclip", 3, 8, 1).command(shards, tmp_path))
    ours = parse(options, Settings("clipfast", 3, 8, 1).command(shards, tmp_path))
    optimizer = ours.optimizer
    assert optimizer == options.optimizer
    assert (theirs.lr, theirs.wd, theirs.eps) == (
        optimizer.lr,
        optimizer.weight_decay,
        optimizer.eps,
    )
    assert (theirs.beta1, theirs.beta2) == (optimizer.beta1, optimizer.beta2)
    assert (optimizer.clip_norm, theirs.grad_clip_norm) == (0.0, None)
    assert theirs.batch_size == ours.batch_size == options.batch_size
    assert theirs.warmup == ours.schedule.warmup_steps
    assert theirs.epochs == ours.schedule.epochs == 8
    assert theirs.seed == ours.seed == 3
    assert (theirs.precision, theirs.device, theirs.lr_scheduler) == ("fp32", "cpu", "cosine")
    # Neither stops for an evaluation.
    assert (ours.data.eval, theirs.val_data) == ((), None)
    assert ours.data.train == (theirs.train_data,)
    assert theirs.train_num_samples // theirs.batch_size * 8 == Settings("openclip", 3, 8, 1).steps
    assert theirs.train_num_samples % theirs.batch_size == 0
    assert not theirs.torchcompile
    compiled = parse_args(Settings("openclip-compiled", 0, 8, 1).command(shards, tmp_path))
    assert compiled.torchcompile
    whole = parse_args(Settings("openclip-77", 0, 8, 1).command(shards, tmp_path))
    assert (theirs.force_context_length, whole.force_context_length) == (13, 77)


def test_both_crop_squares_of_the_same_sides(tmp_path, shards):
    open_clip = import_open_clip()
    from open_clip_train.params import parse_args

    theirs = parse_args(Settings("openclip", 0, 8, 1).command(shards, tmp_path))
    transform = open_clip.image_transform(64, is_train=True, aug_cfg=theirs.aug_cfg)
    crop = transform.transforms[0]
    low, high = recipe().data.scale
    assert crop.scale == pytest.approx((low**2, high**2))
    assert crop.ratio == (1.0, 1.0)
    kinds = [type(part).__name__ for part in transform.transforms[1:]]
    assert kinds == ["MaybeToTensor", "Normalize"]


def test_both_decay_the_same_parameters():
    import_open_clip()
    with torch.device("meta"):
        model = create_model(recipe().model.name)
    groups = parameter_groups(model, recipe().optimizer.weight_decay)
    decay = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    excludes = _rule_of_their_script()
    found = {name: decay[id(parameter)] for name, parameter in model.named_parameters()}
    theirs = {
        name: 0.0 if excludes(name, parameter) else recipe().optimizer.weight_decay
        for name, parameter in model.named_parameters()
    }
    assert found == theirs
    assert set(found.values()) == {0.0, recipe().optimizer.weight_decay}


def _rule_of_their_script() -> Callable[[str, torch.Tensor], bool]:
    """Its ``exclude``, out of the source: importing the script takes packages of its own."""
    source = Path(importlib.util.find_spec("open_clip_train").origin).with_name("main.py")
    (rule,) = [
        ast.unparse(node.value)
        for node in ast.walk(ast.parse(source.read_text()))
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "exclude"
    ]
    return eval(rule)


def test_both_start_from_the_same_distributions(tmp_path):
    open_clip = import_open_clip()
    open_clip.add_model_config(model_file(tmp_path))
    torch.manual_seed(0)
    theirs = open_clip.create_model(recipe().model.name).state_dict()
    ours = create_model(recipe().model.name).state_dict()
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        other = theirs[name].float()
        tensor = tensor.float().reshape(other.shape)
        if tensor.numel() < 1000:
            # Gains, biases and the temperature are constants, the few small weights are not.
            same = torch.equal(tensor, other) or tensor.std() > 0
            assert same, name
        else:
            assert tensor.std().item() == pytest.approx(other.std().item(), rel=0.1), name
            assert abs(tensor.mean() - other.mean()) <= 0.1 * other.std(), name


def test_shards_hold_every_pair_once_in_another_order(shards):
    source = expand(settings.TRAINED_ON)
    reader, places = ShardReader(source), EpochOrder(counts(source), shuffle=False)
    refs = places.locate(0, 0, settings.PAIRS)
    found, captions = [], []
    for path in sorted(shards.glob("*.tar")):
        with tarfile.open(path) as shard:
            members = {member.name: shard.extractfile(member).read() for member in shard}
        for name in [name for name in members if name.endswith(".jpg")]:
            i = int(Path(name).stem)
            place = int(refs.shard[i]), int(refs.row[i])
            assert members[name] == bytes(reader.image(*place))
            caption = members[name.replace(".jpg", ".txt")].decode()
            assert caption == reader.caption(*place)
            found.append(i)
            captions.append(caption)
    reader.close()
    assert len(list(shards.glob("*.tar"))) == COUNT
    assert sorted(found) == list(range(settings.PAIRS))
    neighbours = sum(b == a + 1 for a, b in itertools.pairwise(found))
    assert neighbours < 0.01 * len(found)
    # OpenCLIP's shorter context cuts no caption.
    _, lengths = tokenize_with_lengths(captions)
    assert int(lengths.max()) == settings.LONGEST


def test_commands_alternate_and_take_what_is_asked():
    options = convergence.build_parser().parse_args(["--seeds", "0", "1", "--epochs", "25"])
    wanted = [(one.key, one.seed, one.epochs) for one in convergence.trainings(options)]
    assert wanted == [
        ("clipfast", 0, 25),
        ("openclip", 0, 25),
        ("clipfast", 1, 25),
        ("openclip", 1, 25),
    ]


@pytest.fixture
def trained(monkeypatch, tmp_path):
    """Trainings that take no time; the list of those that were run."""
    calls = []

    def run(wanted, shards, folder, packages=None):
        assert not folder.exists()
        folder.mkdir(parents=True)
        calls.append((wanted.key, wanted.seed))
        if wanted.seed == 9:
            raise RuntimeError("killed")
        row = made_row(experiment.name_of(wanted), wanted.seed, threads=wanted.threads)
        return {k: v for k, v in row.items() if k not in ("environment", "machine")}

    monkeypatch.setattr(experiment, "train", run)
    monkeypatch.setattr(experiment, "write_shards", lambda source, folder: folder)
    monkeypatch.setattr(experiment, "require_packages", lambda packages: None)
    monkeypatch.setattr(
        experiment, "recalls_by_open_clip", lambda *_: {r: 0.31 for r in compare.RECALLS}
    )
    return calls


def test_run_goes_on_after_what_has_a_row(trained, tmp_path):
    path, folder = tmp_path / "rows.jsonl", tmp_path / "folder"
    wanted = [Settings(key, seed, 8, 1) for seed in (0, 9) for key in ("clipfast", "openclip")]
    (folder / "clipfast-0").mkdir(parents=True)  # of a run that was killed
    with pytest.raises(RuntimeError, match="killed"):
        experiment.run(wanted, folder, path=path)
    assert trained == [("clipfast", 0), ("openclip", 0), ("clipfast", 9)]
    assert [row["seed"] for row in read_file(path)] == [0, 0]
    assert read_file(path)[0]["by_open_clip"]["sample/noto/image_to_text/R@1"] == 0.31
    rows = experiment.run(wanted[:2], folder, path=path)
    assert len(trained) == 3
    assert len(rows) == 2
    # Another machine, length or number of threads is another training.
    experiment.run(wanted[:1], folder, path=path, quiet=True)
    experiment.run([Settings("clipfast", 0, 8, 2)], folder, path=path)
    assert [row["machine"] for row in read_file(path)] == ["shared", "shared", "quiet", "shared"]
    assert len(trained) == 5


def test_run_refuses_a_figure_that_open_clips_own_code_does_not_find(
    trained, monkeypatch, tmp_path
):
    path = tmp_path / "rows.jsonl"
    wrong = {recall: 0.35 for recall in compare.RECALLS}
    monkeypatch.setattr(experiment, "recalls_by_open_clip", lambda *_: wrong)
    with pytest.raises(CheckFailed, match=r"image_to_text/R@1 is 0.3000 .* 0.3500 by OpenCLIP's"):
        experiment.run([Settings("openclip", 0, 8, 1)], tmp_path / "folder", path=path)
    assert not path.exists()


def test_train_says_how_a_program_failed(monkeypatch, tmp_path, shards):
    monkeypatch.setattr(train, "start_of", lambda _: ["-c", "import sys; sys.exit('no such loss')"])
    with pytest.raises(RuntimeError, match="no such loss"):
        train.train(Settings("clipfast", 0, 8, 1), shards, tmp_path / "run")


def test_train_refuses_another_number_of_steps(monkeypatch, tmp_path, shards):
    monkeypatch.setattr(train, "start_of", lambda _: ["-c", "pass"])
    monkeypatch.setattr(train, "_our_log", lambda _: ([1.0] * 55, 14.0, 0.0))
    with pytest.raises(CheckFailed, match="expected 56 finite losses, got 55"):
        train.train(Settings("clipfast", 0, 8, 1), shards, tmp_path / "run")


def test_train_counts_the_processor_of_all_processes(monkeypatch, tmp_path, shards):
    burn = (
        "import json, pathlib, subprocess, sys, time\n"
        "work = 'import time\\nwhile time.process_time() < 0.4: pass'\n"
        "subprocess.run([sys.executable, '-S', '-c', work], check=True)\n"
        "used = {'time': time.time(), 'cpu_seconds': 0.1}\n"
        "pathlib.Path(sys.argv[1], 'started.json').write_text(json.dumps(used))\n"
    )
    monkeypatch.setattr(train, "start_of", lambda _: ["-S", "-c", burn])
    monkeypatch.setattr(train, "_our_log", lambda _: ([2.0] * 49 + [1.0] * 7, 14.0, 0.0))
    monkeypatch.setattr(train, "recalls_of", lambda *_: {})
    row = train.train(Settings("clipfast", 0, 8, 1), shards, tmp_path / "run")
    assert row["cpu_seconds"] >= 0.4
    assert row["train_cpu_seconds"] == pytest.approx(row["cpu_seconds"] - 0.1)
    assert row["final_loss"] == 1.0


def test_their_losses_come_from_tensorboard(tmp_path):
    folder = settings.log_folder(tmp_path) / "tensorboard"
    losses = [math.exp(-step) for step in range(20)]
    with SummaryWriter(str(folder)) as board:
        for step, loss in enumerate(losses):
            board.add_scalar("train/loss", loss, step, walltime=100.0 + step)
            board.add_scalar("train/scale", 14.0 + step, step, walltime=100.0 + step)
    found, scale, ended = train._their_log(tmp_path)
    assert found == pytest.approx(losses)
    assert (scale, ended) == (33.0, 119.0)


def test_compare_is_welchs_interval():
    ours = [{"final_loss": value} for value in (1.0, 2.0, 3.0)]
    theirs = [{"final_loss": value} for value in (2.0, 4.0, 6.0, 8.0)]
    found = compare.compare(ours, theirs, "final_loss")
    assert (found["mean"], found["other_mean"], found["difference"]) == (2.0, 5.0, -3.0)
    spreads = 1 / 3, statistics.variance([2, 4, 6, 8]) / 4
    freedom = sum(spreads) ** 2 / (spreads[0] ** 2 / 2 + spreads[1] ** 2 / 3)
    assert 4 < freedom < 5
    half = (found["high"] - found["low"]) / 2
    # Student's quantiles at 97.5% for 4 and 5 degrees of freedom.
    assert 2.571 < half / math.sqrt(sum(spreads)) < 2.776
    assert found["is_same"]


def test_compare_tells_a_shift_from_seeds():
    rows = [made_row("clipfast", seed) for seed in range(5)]
    same = [made_row("OpenCLIP 3.3.0", seed, shift=0.005) for seed in range(5)]
    other = [made_row("OpenCLIP 3.3.0", seed, shift=0.1) for seed in range(5)]
    assert compare.compare(rows, same, "final_loss")["is_same"]
    assert not compare.compare(rows, other, "final_loss")["is_same"]
    assert report.complaints([*rows, *same]) == []
    assert len(report.complaints([*rows, *other])) == len(compare.FIGURES)
    # One figure's own interval may leave 0 out where that of all together does not.
    near = [made_row("OpenCLIP 3.3.0", seed, shift=0.03) for seed in range(5)]
    found = compare.compare(rows, near, "final_loss")
    assert found["high"] < 0
    assert found["is_same"]


def test_compare_takes_the_longest_trainings_of_two_contenders():
    rows = [made_row("OpenCLIP 3.3.0", seed) for seed in (1, 0)]
    rows += [made_row("clipfast", seed) for seed in (0, 1)]
    rows += [made_row("clipfast", seed, epochs=25) for seed in (0, 1)]
    rows += [made_row("OpenCLIP 3.3.0", 0, epochs=25)]
    rows += [made_row("clipfast", 0, shift=1.0, machine="quiet")]
    found = compare.groups_of(rows)
    assert list(found) == ["clipfast", "OpenCLIP 3.3.0"]
    assert [[row["seed"] for row in group] for group in found.values()] == [[0, 1], [0, 1]]
    assert all(row["epochs"] == 8 and row["machine"] == "shared" for row in found["clipfast"])
    assert compare.groups_of(rows[:1]) == {}


def test_report_draws_and_ends_with_status_1_where_figures_differ(tmp_path, capsys):
    path = tmp_path / "rows.jsonl"
    rows = [made_row("clipfast", seed) for seed in range(3)]
    rows += [made_row("OpenCLIP 3.3.0", seed, shift=0.2) for seed in range(3)]
    append_rows(path, stamped("convergence", rows, STAMP))
    with pytest.raises(SystemExit, match=r"OpenCLIP 3\.3\.0: final_loss differs"):
        convergence.main(["--report", "--json", str(path)])
    told = capsys.readouterr().out
    assert "DIFFERS" in told
    assert (tmp_path / "rows.png").read_bytes().startswith(b"\x89PNG")


def test_tables_take_the_clock_of_a_quiet_machine_alone(monkeypatch):
    rows = [made_row("clipfast", 0), made_row("OpenCLIP 3.3.0", 0, train_cpu_seconds=45.0)]
    monkeypatch.setattr(tables, "read", lambda: rows)
    assert "| processor, all steps | 30.0 s | 45.0 s | 1.50x |" in tables.convergence_time()
    assert "clock" not in tables.convergence_time()
    quiet = [made_row("OpenCLIP 3.3.0", 0, machine="quiet", threads=2, train_seconds=80.0)]
    rows += [*quiet, made_row("clipfast", 0, machine="quiet", threads=2)]
    assert "| clock, all steps | 40.0 s | 80.0 s | 2.00x |" in tables.convergence_time()
    assert tables.convergence() == "not measured"


@pytest.mark.parametrize(
    ("versions", "told"),
    [
        ({"webdataset": "0.2.86", "pandas": "3.0"}, None),
        ({"webdataset": "1.0.2", "pandas": "3.0"}, "webdataset is 1.0.2, newer than 0.2.86"),
        ({"webdataset": "0.2.5"}, "pandas is missing"),
        ({}, "webdataset is missing and pandas is missing"),
    ],
)
def test_packages_of_open_clips_script_are_looked_at_first(monkeypatch, tmp_path, versions, told):
    for name, version in versions.items():
        folder = tmp_path / f"{name}-{version}.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Name: {name}\nVersion: {version}\n")
    monkeypatch.setattr(sys, "path", [])
    if told is None:
        require_packages(tmp_path)
        return
    with pytest.raises(ImportError, match=f"{told}.*pip install --no-deps --target PACKAGES"):
        require_packages(tmp_path)


def test_rows_of_the_file_are_whole():
    for row in experiment.read():
        assert len(row["losses"]) == row["steps"]
        assert row["seed"] or set(row["by_open_clip"]) == set(compare.RECALLS), row["name"]
        json.dumps(row)


def test_report_of_too_few_seeds_says_what_they_took(tmp_path, capsys):
    path = tmp_path / "rows.jsonl"
    append_rows(path, stamped("convergence", [made_row("clipfast", 0)], STAMP))
    convergence.main(["--report", "--json", str(path)])
    told = capsys.readouterr().out
    assert "nothing to compare" in told
    assert "clipfast, 8 epochs, 1 thread, shared machine" in told
    assert not (tmp_path / "rows.png").exists()
