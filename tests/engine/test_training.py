"""Whole runs as a user starts them: ZeRO stages, micro-batches, resume, precision, outputs."""

import functools
import json
import runpy
import shutil
import signal
from collections.abc import Generator, Iterable
from pathlib import Path
from unittest import mock

import pytest
import safetensors.torch
import torch

from clipfast.checkpoint import Manifest
from clipfast.checkpoint.contents import export_weights
from clipfast.engine.requests import INTERRUPTED
from clipfast.models import catalogue, create_model, export, load_weights, read_metadata
from clipfast.models.compile import compile_blocks
from tests.campaigns.subject import RECIPE
from tests.engine.launching import (
    PAPER,
    QUICK,
    _trainings,
    documented,
    fail,
    free_port,
    losses,
    norms,
    rows,
    run,
    signal_when,
    train_in_turn,
)
from tests.ranks import run_ranks

EVAL = ("--data.eval", "sample/noto")
FOUR = ("--max-steps", "4")
SAVED = (*FOUR, "--checkpoint.every-steps", "2")
# The second is kept for good, so that it can be gone on from.
IN_BACKGROUND = (
    *(*FOUR, "--checkpoint.every-steps", "1", "--checkpoint.keep", "1"),
    *("--checkpoint.background", "--checkpoint.keep-every", "2"),
)
MIXED = (
    *("--optimizer.stats", "bf16", "--optimizer.image-weights", "stochastic"),
    *("--optimizer.text-weights", "fp32"),
)
BF16 = ("--precision", "bf16")
HELD_OUT = (
    *("--logging.validation", "sample/twemoji", "--logging.validation-every", "1"),
    *("--data.eval-limit", "64"),
)
UNEVEN = (
    *("--zero-stage", "3", "--max-steps", "1"),
    *("--data.eval-limit", "33", "--data.eval-batch-size", "16"),
)
# With --thorough every stage and precision; without it one of each kind.
SCALES = [(1, "fp32"), (2, "bf16")]
MORE_SCALES = [(0, "fp32"), (3, "fp32"), (0, "bf16")]
RECOMPUTED = {1: "full", 3: "selective"}
MORE_RECOMPUTED = {0: "none", 2: "selective"}
RESUMED = ["saved-1-micro", "saved-3-mixed"]
MORE_RESUMED = ["saved-0-fp32", "saved-0", "saved-2-micro"]


def with_more(some: Iterable, more: Iterable) -> list:
    """The values of a parameter, of which ``more`` are for ``--thorough``."""
    return [*some, *(pytest.param(*_words(one), marks=pytest.mark.thorough) for one in more)]


def _words(one: object) -> tuple:
    return one if isinstance(one, tuple) else (one,)


# Of the recipe that most runs here train.
MODEL = "RN-least"
LEAST = (*QUICK, "--logging.name", "emoji")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", autouse=True)
def model() -> Generator[None]:
    """It is known here alone: other tests ask which models there are."""
    with mock.patch.dict(catalogue._MODELS):
        runpy.run_path(str(RECIPE))
        yield


def train(folder: Path, *options: str, ranks: int = 0, recipe: str = "emoji.py") -> Path:
    run(recipe, *QUICK, "--logging.dir", str(folder), *options, ranks=ranks)
    return folder / "emoji"


def resumed(folder: Path, runs: dict[str, list[str]]) -> dict[str, list[str]]:
    """The runs that go on from the second step of some that saved a checkpoint there."""
    return {
        f"{name}-resumed": [
            *options,
            *("--checkpoint.every-steps", "0"),
            *("--resume", str(folder / name / "checkpoints" / "step00000002")),
        ]
        for name, options in runs.items()
    }


def drop_files(folder: Path, step: str) -> None:
    """Empty checkpoints that nothing reads any more: all of them together are 5 GB."""
    for path in folder.glob(f"*/checkpoints/{step}/*"):
        path.unlink()


@pytest.fixture(scope="module")
def alone(tmp_path_factory, is_thorough) -> Generator[Path]:
    """Runs of one process. Those to compare with two ranks have batch norm in groups of a rank's
    size."""
    folder = tmp_path_factory.mktemp("alone")
    parts = ("--micro-batch", "16")
    start = create_model(MODEL)
    torch.nn.init.constant_(start.logit_scale, 5.0)  # exp(5) = 148
    export(start, folder / "start.safetensors")
    hot = ("--model.weights", str(folder / "start.safetensors"), "--max-steps", "2")
    runs = {
        "fp32": [*FOUR, *parts, "--zero-stage", "1"],
        "paper": [*FOUR, *parts, *BF16, *PAPER, "--zero-stage", "2"],
        "plain": ["--max-steps", "3"],
        "validated": ["--max-steps", "3", *HELD_OUT],
        "selective": ["--max-steps", "3", "--model.recompute", "selective"],
        "clipped": ["--max-steps", "3", "--optimizer.clip-norm", "0.01"],
    }
    launched = {
        "vit": [*FOUR, "--model.name", "ViT-tiny"],
        "uninterrupted": ["--max-steps", "8"],
        "uneven": [*UNEVEN, *EVAL],
    }
    for stage, precision in SCALES + MORE_SCALES * is_thorough:
        options = [*hot, "--zero-stage", str(stage), "--precision", precision]
        runs[f"hot-{stage}-{precision}"] = [*options, *PAPER] if stage % 2 == 0 else options
    saved = {
        "saved-0-fp32": [*SAVED, *parts, "--zero-stage", "0", *PAPER],
        "saved-0": [*SAVED, *BF16, *parts, "--zero-stage", "0"],
        "saved-1-micro": [*SAVED, *BF16, *parts, "--zero-stage", "1"],
        "saved-2-micro": [*SAVED, *BF16, *parts, "--zero-stage", "2"],
        "saved-3-mixed": [*SAVED, *BF16, *MIXED, *parts, "--zero-stage", "3"],
        "background": [*IN_BACKGROUND, *parts, "--zero-stage", "1"],
    }
    for name in MORE_RESUMED * (not is_thorough):
        del saved[name]
    other = {
        "converted": [
            *(*FOUR, *BF16, *PAPER, *parts, "--zero-stage", "3", "--resume-with-changes"),
            *("--resume", str(folder / "saved-3-mixed" / "checkpoints" / "step00000002")),
        ],
        "exported": [
            *("--max-steps", "2", *BF16, *MIXED, *parts, "--zero-stage", "3"),
            "--resume-with-changes",
            *("--resume", str(folder / "saved-3-mixed" / "checkpoints" / "step00000002")),
        ],
    }
    least = {**runs, **saved, **resumed(folder, saved), **other}
    train_in_turn(folder, least, recipe=str(RECIPE))
    train_in_turn(folder, launched)
    drop_files(folder, "step00000002")
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def together(tmp_path_factory, is_thorough) -> Generator[Path]:
    """Runs of two ranks."""
    folder = tmp_path_factory.mktemp("together")
    runs = {}
    recomputed = RECOMPUTED | (MORE_RECOMPUTED if is_thorough else {})
    for stage, checkpoint in recomputed.items():
        options = [*FOUR, "--zero-stage", str(stage), "--model.recompute", checkpoint]
        # A trace changes nothing, and its own test reads it.
        runs[f"fp32-{stage}"] = [*options, "--profile", "2"]
    saved = {
        f"paper-{stage}": [*SAVED, *BF16, *PAPER, "--zero-stage", str(stage)]
        for stage in recomputed
    }
    saved["background"] = [*IN_BACKGROUND, "--zero-stage", "1", "--model.recompute", RECOMPUTED[1]]
    least = {**runs, **saved, **resumed(folder, saved)}
    train_in_turn(folder, least, ranks=2, recipe=str(RECIPE))
    drop_files(folder, "step*")
    yield folder
    shutil.rmtree(folder)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(folder / "final.safetensors")


def assert_repeats(folder: Path, name: str) -> None:
    """The resumed run took the steps and ended with the weights of the uninterrupted one."""
    whole, again = weights(folder / name), weights(folder / f"{name}-resumed")
    assert losses(folder / f"{name}-resumed") == losses(folder / name)[2:]
    assert [key for key in whole if not torch.equal(whole[key], again[key])] == []


def test_runs_that_save_in_the_background_train_the_same_bits_and_go_on(together, alone):
    for folder, same in ((alone, "fp32"), (together, "fp32-1")):
        assert losses(folder / "background") == losses(folder / same)
        ours, theirs = weights(folder / "background"), weights(folder / same)
        assert [key for key in theirs if not torch.equal(ours[key], theirs[key])] == []
        assert_repeats(folder, "background")
        kept = sorted(path.name for path in (folder / "background" / "checkpoints").glob("step*"))
        assert kept == ["step00000002", "step00000004"]


@pytest.mark.parametrize("stage", with_more(RECOMPUTED, MORE_RECOMPUTED))
def test_two_ranks_equal_one_process_at_every_zero_stage(together, alone, stage):
    ours, theirs = together / f"fp32-{stage}", alone / "fp32"
    assert losses(ours) == pytest.approx(losses(theirs), abs=1e-3)
    if stage:
        # Adam hides a wrong scale of the gradient; its norm does not.
        assert norms(ours) == pytest.approx(norms(theirs), rel=1e-3)
    trained = weights(ours)
    for name, weight in weights(theirs).items():
        if weight.is_floating_point() and "running" not in name:
            # Adam divides by the root of tiny second moments, which magnifies rounding differences.
            change = (trained[name] - weight).abs()
            if name.endswith("in_proj_bias"):
                # A softmax does not see the keys' bias: its gradient is nothing but rounding.
                queries, _, values = change.chunk(3)
                change = torch.cat([queries, values])
            assert change.mean() < 1e-4, name


@pytest.mark.parametrize("stage", with_more(RECOMPUTED, MORE_RECOMPUTED))
def test_a_profile_says_where_the_time_of_a_step_went(together, stage):
    folder = together / f"fp32-{stage}" / "profile"
    traces = sorted(path.name for path in folder.glob("*.json.gz"))
    assert traces == ["rank00000.json.gz", "rank00001.json.gz"]
    told = json.loads((folder / "summary.json").read_text())
    parts = ("compute", "exposed", "data", "idle")
    assert told["steps"] == 2
    assert told["step"] == pytest.approx(sum(told[part] for part in parts), rel=1e-6)
    assert told["compute"] > 0
    assert told["exposed"] > 0
    names = {one["name"] for one in told["collectives"]}
    assert {"all_gather in gather of texts", "all_reduce in loss"} <= names
    reduces = any(name.endswith(" in reduce") for name in names)
    assert reduces, names
    towers = {"image tower", "text tower", "gather of texts"}
    assert {*towers, "data", "forward", "loss", "backward", "reduce", "optimizer"} == set(
        told["spans"]
    )
    assert "aten::" in (folder / "summary.txt").read_text()


@pytest.mark.parametrize("stage", with_more(RECOMPUTED, MORE_RECOMPUTED))
def test_two_ranks_train_the_papers_combination_as_one_and_resume_bit_for_bit(
    together, alone, stage
):
    ours = together / f"paper-{stage}"
    assert losses(ours) == pytest.approx(losses(alone / "paper"), rel=0.02)
    assert norms(ours) == pytest.approx(norms(alone / "paper"), rel=0.03)
    assert losses(ours) == pytest.approx(losses(alone / "fp32"), rel=0.05)
    assert_repeats(together, f"paper-{stage}")
    written = weights(ours)
    # The image tower's exact masters were written, not their bf16 copies; the text tower has none.
    for name, exact in (("visual.conv1.weight", True), ("text_projection", False)):
        assert torch.equal(written[name], written[name].bfloat16().float()) != exact, name
    assert not torch.equal(written["logit_scale"], written["logit_scale"].bfloat16().float())


@pytest.mark.parametrize("name", with_more(RESUMED, MORE_RESUMED))
def test_a_resumed_run_repeats_the_uninterrupted_one_bit_for_bit(alone, name):
    assert losses(alone / name) == pytest.approx(losses(alone / "fp32"), rel=0.1)
    assert_repeats(alone, name)
    # The weights written are the float32 masters, not their bfloat16 copies.
    key = "text_projection" if name == "saved-3-mixed" else "visual.conv1.weight"
    assert not torch.equal(
        weights(alone / name)[key], weights(alone / name)[key].bfloat16().float()
    )


def test_a_checkpoint_gives_its_weights_and_takes_other_statistics_and_weights(alone):
    assert [row["step"] for row in rows(alone / "converted")] == [3, 4]
    converted = weights(alone / "converted")
    assert torch.equal(
        converted["text_projection"], converted["text_projection"].bfloat16().float()
    )
    image = converted["visual.conv1.weight"]
    assert not torch.equal(image, image.bfloat16().float())
    # Resumed for no further step, it writes the weights that the step before the next starts from.
    exported = weights(alone / "exported")["text_projection"]
    assert not torch.equal(exported, exported.bfloat16().float())
    assert 0 < (exported - weights(alone / "saved-3-mixed")["text_projection"]).abs().mean() < 0.01
    assert losses(alone / "converted") == pytest.approx(
        losses(alone / "saved-3-mixed")[2:], rel=0.05
    )


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", with_more(RESUMED, ["saved-0"]))
def test_a_checkpoint_gives_the_weights_of_the_run_and_what_they_are_of(alone, tmp_path, name):
    folder = alone / name / "checkpoints" / "step00000004"
    assert export_weights(folder, Manifest.read(folder), tmp_path / "out.safetensors")
    exported = safetensors.torch.load_file(tmp_path / "out.safetensors")
    final = weights(alone / name)
    assert exported.keys() == final.keys()
    assert [key for key in final if not torch.equal(final[key], exported[key])] == []
    found, told = (
        read_metadata(path)
        for path in (tmp_path / "out.safetensors", alone / name / "final.safetensors")
    )
    assert found == told
    create_model.from_file(tmp_path / "out.safetensors")


def trained_without_code(folder: str, options: list[str], port: int) -> None:
    """On a rank: trace blocks that are to be compiled, and run them as they were traced."""
    traced = functools.partial(compile_blocks, backend="aot_eager")
    with mock.patch("clipfast.engine.builders.compile_blocks", traced):
        _trainings(folder, {"emoji": options}, port)


@pytest.mark.parametrize("code", [False, pytest.param(True, marks=pytest.mark.thorough)])
def test_micro_batches_of_compiled_blocks_equal_the_whole_batch_with_a_vit(tmp_path, alone, code):
    # tests/models/test_compile.py also trains with the code that is generated.
    whole = alone / "vit"
    options = ["--micro-batch", "8", "--model.compile", "blocks", "--model.name", "ViT-tiny", *FOUR]
    if code:
        options += ["--model.recompute", "auto", "--logging.dir", str(tmp_path)]
        output = run("emoji.py", *QUICK, *options)
        assert "recompute: auto -> none (activations 0." in output
    else:
        run_ranks(1, trained_without_code, str(tmp_path), options, free_port())
    quarter = tmp_path / "emoji"
    assert losses(quarter) == pytest.approx(losses(whole), abs=1e-4)
    scales = [[row["logit_scale"] for row in rows(folder)] for folder in (whole, quarter)]
    assert scales[1] == pytest.approx(scales[0], abs=1e-4)
    assert norms(quarter) == pytest.approx(norms(whole), rel=1e-3)


def test_a_run_trains_the_same_bits_whether_held_out_pairs_are_measured_or_not(alone):
    measured, plain = weights(alone / "validated"), weights(alone / "plain")
    assert losses(alone / "validated") == losses(alone / "plain")
    assert [key for key in plain if not torch.equal(plain[key], measured[key])] == []
    lines = (alone / "validated" / "metrics.jsonl").read_text().splitlines()
    table = [row for row in map(json.loads, lines) if "validation/loss" in row]
    assert [row["step"] for row in table] == [1, 2, 3]
    # Two batches of 32 pairs, of a model that knows next to nothing.
    assert all(2.5 < row["validation/loss"] < 6 for row in table)


def test_a_killed_run_resumes_and_repeats_the_uninterrupted_one(tmp_path, alone):
    options = ["--max-steps", "8", "--checkpoint.every-steps", "3"]
    whole = alone / "uninterrupted"
    folder = tmp_path / "killed"
    arguments = [*QUICK, "--logging.dir", str(folder), *options]
    complete = folder / "emoji" / "checkpoints" / "step00000003" / "manifest.json"
    assert signal_when(complete, signal.SIGKILL, "emoji.py", *arguments) == -signal.SIGKILL
    assert not (folder / "emoji" / "final.safetensors").exists()
    output = run("emoji.py", *arguments, "--resume", "latest")
    assert "resumed after step" in output
    assert losses(folder / "emoji") == pytest.approx(losses(whole), abs=1e-6)
    kept = sorted(p.name for p in (folder / "emoji" / "checkpoints").glob("step*"))
    assert kept == ["step00000006", "step00000008"]


def test_a_terminated_run_saves_a_checkpoint_and_resumes(tmp_path):
    arguments = [*LEAST, "--logging.dir", str(tmp_path)]
    folder = tmp_path / "emoji"
    long = [*arguments, "--max-steps", "5000"]
    rows_of = folder / "metrics.jsonl"
    assert signal_when(rows_of, signal.SIGTERM, str(RECIPE), *long) == INTERRUPTED
    (checkpoint,) = (folder / "checkpoints").glob("step*")
    step = Manifest.read(checkpoint).step
    assert json.loads((folder / "run.json").read_text())["starts"][0]["ended"]["step"] == step
    assert not (folder / "final.safetensors").exists()
    shorter = [*arguments, "--max-steps", str(step + 1), "--resume", "latest"]
    assert "--max-steps was 5000, is" in fail(str(RECIPE), *shorter)
    output = run(str(RECIPE), *shorter, "--resume-with-changes")
    assert f"resumed after step {step}" in output
    assert [row["step"] for row in rows(folder)] == list(range(1, step + 2))


def test_a_new_run_of_the_same_name_moves_the_old_one_aside(tmp_path):
    options = ["--max-steps", "1", "--checkpoint.every-steps", "1", "--zero-stage", "1"]
    first = train(tmp_path, *LEAST, *options, recipe=str(RECIPE))
    old = losses(first)
    output = run(str(RECIPE), *LEAST, "--logging.dir", str(tmp_path), *options, "--seed", "1")
    assert "emoji.1" in output
    assert losses(tmp_path / "emoji.1") == old
    assert losses(first) != old
    resume = [*options, "--logging.dir", str(tmp_path), "--resume", "latest"]
    assert "--seed was 1, is 0" in fail(str(RECIPE), *LEAST, *resume)
    resume += ["--seed", "1", "--zero-stage", "3"]
    assert "ZeRO stage 1 -> 3" in run(str(RECIPE), *LEAST, *resume)


@pytest.mark.parametrize(("stage", "precision"), with_more(SCALES, MORE_SCALES))
def test_the_logit_scale_stays_at_100_on_the_master_under_every_stage(alone, stage, precision):
    folder = alone / f"hot-{stage}-{precision}"
    after = rows(folder)[1]["logit_scale"]
    # bfloat16 rounds the parameter itself to steps of 1/64.
    assert after == pytest.approx(100.0, rel=1e-4 if precision == "fp32" else 0.016)
    model = create_model(MODEL)
    load_weights(model, folder / "final.safetensors")
    found = read_metadata(folder / "final.safetensors")
    assert (found.model, found.step) == (MODEL, 2)
    # The exact weight was written; the bf16 values on both sides are 98.9 and 102.
    assert 99.8 < model.logit_scale.exp().item() <= 100.0


def test_recomputation_and_clipping_leave_or_bound_the_run(alone):
    plain = losses(alone / "plain")
    assert losses(alone / "selective") == plain
    assert losses(alone / "clipped") != pytest.approx(plain, abs=1e-5)


def test_launched_ranks_with_uneven_parts_evaluate_as_one_process_under_zero_3(tmp_path, alone):
    # 33 pairs in batches of 16: one rank has two batches, the other one.
    both = train(tmp_path, *UNEVEN, *EVAL, ranks=2)
    tables = []
    for folder in (alone / "uneven", both):
        lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
        tables.append(next(row for row in lines if any(key.startswith("eval/") for key in row)))
    keys = [key for key in tables[0] if key.startswith("eval/")]
    assert len(keys) == 6
    # Batch norm's running statistics are rank 0's, so features differ by a rank's share of them.
    assert [tables[1][k] for k in keys] == pytest.approx([tables[0][k] for k in keys], abs=0.1)


def test_a_run_leaves_metrics_events_evaluation_and_weights(tmp_path):
    options = "--max-steps 3 --batch-size 32 --data.eval-limit 48 --eval.every 2"
    shared = set(Path("/dev/shm").glob("deepspeed*"))
    output = run("emoji.py", *options.split(), "--logging.dir", str(tmp_path))
    folder = tmp_path / "emoji"
    table = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert set(Path("/dev/shm").glob("deepspeed*")) <= shared
    key = "eval/sample/twemoji/image_to_text/R@5"
    assert [row["step"] for row in table if key in row] == [2, 3]
    names = {name for row in table for name in row if not name.startswith("eval/")}
    when = ("every row", "after an evaluation", "after a checkpoint")
    assert names - {"run", "step", "time"} == documented(*when)
    assert list(folder.glob("events.out.tfevents.*"))
    assert "chance" in output
    assert "images/s" in output
    model = create_model("RN-tiny")
    load_weights(model, folder / "final.safetensors")
    assert model.logit_scale.item() != create_model("RN-tiny").logit_scale.item()
