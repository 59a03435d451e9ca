"""Whole runs as a user starts them: ZeRO stages, micro-batches, resume, precision, outputs."""

import json
import signal
from pathlib import Path

import pytest
import safetensors.torch
import torch

from clipfast.models import create_model, export, load_weights
from tests.engine.launching import QUICK, fail, losses, norms, rows, run, signal_when

STEPS = 4
EVAL = ("--data.eval", "sample/noto")
pytestmark = pytest.mark.slow


def train(folder: Path, *options: str, ranks: int = 0, recipe: str = "emoji.py") -> Path:
    run(recipe, *QUICK, "--logging.dir", str(folder), *options, ranks=ranks)
    return folder / "emoji"


@pytest.fixture(scope="module")
def one_process(tmp_path_factory) -> Path:
    """RN-tiny in one process, its batch norm in groups of a rank's size."""
    folder = tmp_path_factory.mktemp("one")
    return train(folder, "--max-steps", str(STEPS), "--micro-batch", "16", "--zero-stage", "1")


@pytest.mark.parametrize(
    ("stage", "checkpoint"), [(0, "none"), (1, "selective"), (2, "full"), (3, "selective")]
)
def test_two_ranks_equal_one_process_at_every_zero_stage(tmp_path, one_process, stage, checkpoint):
    options = ["--zero-stage", str(stage), "--model.checkpoint", checkpoint]
    run_folder = train(tmp_path, "--max-steps", str(STEPS), *options, ranks=2)
    assert losses(run_folder) == pytest.approx(losses(one_process), abs=1e-3)
    if stage:
        # Adam hides a wrong scale of the gradient; its norm does not.
        assert norms(run_folder) == pytest.approx(norms(one_process), rel=1e-3)
    ours, theirs = create_model("RN-tiny"), create_model("RN-tiny")
    load_weights(ours, run_folder / "final.safetensors")
    load_weights(theirs, one_process / "final.safetensors")
    for (name, a), b in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        # Adam divides by the root of tiny second moments, which magnifies rounding differences.
        assert (a - b).abs().mean() < 1e-4, name


def test_micro_batches_of_compiled_blocks_equal_the_whole_batch_with_a_vit(tmp_path):
    vit = ["--model.name", "ViT-tiny", "--max-steps", str(STEPS)]
    whole = train(tmp_path / "whole", *vit)
    options = ["--micro-batch", "8", "--model.compile", "blocks", "--model.checkpoint", "auto"]
    output = run("emoji.py", *QUICK, "--logging.dir", str(tmp_path / "quarter"), *vit, *options)
    assert "checkpoint: auto -> none (activations 0." in output
    quarter = tmp_path / "quarter" / "emoji"
    assert losses(quarter) == pytest.approx(losses(whole), abs=1e-4)
    scales = [[row["logit_scale"] for row in rows(folder)] for folder in (whole, quarter)]
    assert scales[1] == pytest.approx(scales[0], abs=1e-4)
    assert norms(quarter) == pytest.approx(norms(whole), rel=1e-3)


def test_a_killed_run_resumes_and_repeats_the_uninterrupted_one(tmp_path):
    options = ["--max-steps", "8", "--checkpoint.every-steps", "3"]
    whole = train(tmp_path / "whole", *options)
    folder = tmp_path / "killed"
    arguments = [*QUICK, "--logging.dir", str(folder), *options]
    complete = folder / "emoji" / "checkpoints" / "step00000003" / "complete.json"
    assert signal_when(complete, signal.SIGKILL, "emoji.py", *arguments) == -signal.SIGKILL
    assert not (folder / "emoji" / "final.safetensors").exists()
    output = run("emoji.py", *arguments, "--resume", "latest")
    assert "resumed after step" in output
    assert losses(folder / "emoji") == pytest.approx(losses(whole), abs=1e-6)
    kept = sorted(p.name for p in (folder / "emoji" / "checkpoints").glob("step*"))
    assert kept == ["step00000006", "step00000008"]


def test_a_terminated_run_saves_a_checkpoint_and_resumes(tmp_path):
    arguments = [*QUICK, "--logging.dir", str(tmp_path)]
    folder = tmp_path / "emoji"
    long = [*arguments, "--max-steps", "5000"]
    assert signal_when(folder / "metrics.jsonl", signal.SIGTERM, "emoji.py", *long) == 0
    (checkpoint,) = (folder / "checkpoints").glob("step*")
    step = json.loads((checkpoint / "complete.json").read_text())["step"]
    assert not (folder / "final.safetensors").exists()
    output = run("emoji.py", *arguments, "--max-steps", str(step + 1), "--resume", "latest")
    assert f"resumed after step {step}" in output
    assert [row["step"] for row in rows(folder)] == list(range(1, step + 2))


@pytest.mark.gpu
@pytest.mark.parametrize("stage", ["0", "1", "2", "3"])
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_gpu_trains_at_every_stage_in_every_precision(tmp_path, stage, precision):
    options = ["--max-steps", "12", "--micro-batch", "16", "--batch-size", "64"]
    folder = train(tmp_path, *options, "--zero-stage", stage, "--precision", precision)
    # Dynamic loss scaling may skip the first steps; the rest must go down.
    assert losses(folder)[-1] < losses(folder)[0] + 0.1
    model = create_model("RN-tiny")
    load_weights(model, folder / "final.safetensors")


@pytest.mark.parametrize(
    ("stage", "micro_batch"), [("0", "32"), ("1", "32"), ("1", "16"), ("2", "16"), ("3", "16")]
)
def test_bf16_follows_fp32_and_resumes_at_every_stage(tmp_path, stage, micro_batch):
    common = ["--micro-batch", micro_batch, "--zero-stage", stage]
    truth = train(tmp_path / "fp32", "--max-steps", "3", *common)
    options = [*common, "--precision", "bf16", "--checkpoint.every-steps", "2"]
    train(tmp_path / "bf16", "--max-steps", "2", *options)
    folder = train(tmp_path / "bf16", "--max-steps", "3", *options, "--resume", "latest")
    assert [row["step"] for row in rows(folder)] == [1, 2, 3]
    assert losses(folder) == pytest.approx(losses(truth), rel=0.1)
    # The weights written are the float32 masters, not their bfloat16 copies.
    weights = safetensors.torch.load_file(folder / "final.safetensors")["visual.conv1.weight"]
    assert not torch.equal(weights, weights.bfloat16().float())


def test_a_new_run_of_the_same_name_moves_the_old_one_aside(tmp_path):
    options = ["--max-steps", "1", "--checkpoint.every-steps", "1"]
    first = train(tmp_path, *options)
    old = losses(first)
    output = run("emoji.py", *QUICK, "--logging.dir", str(tmp_path), *options, "--seed", "1")
    assert "emoji.1" in output
    assert losses(tmp_path / "emoji.1") == old
    assert losses(first) != old
    reason = fail("emoji.py", *QUICK, "--logging.dir", str(tmp_path), "--resume", "latest")
    assert "seed was 1, is 0" in reason
    resume = ["--logging.dir", str(tmp_path), "--resume", "latest", "--zero-stage", "3"]
    assert "ZeRO stage 1, not 3" in fail("emoji.py", *QUICK, *resume)


@pytest.mark.parametrize(
    ("stage", "precision"),
    [("0", "fp32"), ("1", "fp32"), ("2", "fp32"), ("3", "fp32"), ("0", "bf16"), ("2", "bf16")],
)
def test_the_logit_scale_stays_at_100_on_the_master_under_every_stage(tmp_path, stage, precision):
    start = create_model("RN-tiny")
    torch.nn.init.constant_(start.logit_scale, 5.0)  # exp(5) = 148
    export(start, tmp_path / "start.safetensors")
    options = ["--model.weights", str(tmp_path / "start.safetensors"), "--max-steps", "2"]
    folder = train(tmp_path, *options, "--zero-stage", stage, "--precision", precision)
    after = rows(folder)[1]["logit_scale"]
    # bfloat16 rounds the parameter itself to steps of 1/64.
    assert after == pytest.approx(100.0, rel=1e-4 if precision == "fp32" else 0.016)
    model = create_model("RN-tiny")
    load_weights(model, folder / "final.safetensors")
    assert model.logit_scale.exp().item() <= 100.0


def test_recomputation_and_clipping_leave_or_bound_the_run(tmp_path):
    plain = train(tmp_path / "plain", "--max-steps", "3")
    options = ["--max-steps", "3", "--model.checkpoint", "selective"]
    recomputed = train(tmp_path / "recomputed", *options)
    assert losses(recomputed) == losses(plain)
    clipped = train(tmp_path / "clipped", "--max-steps", "3", "--optimizer.clip-norm", "0.01")
    assert losses(clipped) != pytest.approx(losses(plain), abs=1e-5)


def test_ranks_with_uneven_parts_evaluate_as_one_process_under_zero_3(tmp_path):
    tables = []
    for ranks in (0, 2):
        # 33 pairs in batches of 16: one rank has two batches, the other one.
        options = "--zero-stage 3 --max-steps 1 --data.eval-limit 33 --data.eval-batch-size 16"
        folder = train(tmp_path / str(ranks), *options.split(), *EVAL, ranks=ranks)
        lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
        tables.append(next(row for row in lines if "loss" not in row))
    keys = [key for key in tables[0] if key.startswith("eval/")]
    assert len(keys) == 6
    # Batch norm's running statistics are rank 0's, so features differ by a rank's share of them.
    assert [tables[1][k] for k in keys] == pytest.approx([tables[0][k] for k in keys], abs=0.1)


def test_a_run_leaves_metrics_events_evaluation_and_weights(tmp_path):
    options = "--max-steps 3 --batch-size 32 --data.eval-limit 48 --logging.eval-every-steps 2"
    shared = set(Path("/dev/shm").glob("deepspeed*"))
    output = run("emoji.py", *options.split(), "--logging.dir", str(tmp_path))
    folder = tmp_path / "emoji"
    table = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert set(Path("/dev/shm").glob("deepspeed*")) <= shared
    key = "eval/sample/twemoji/image_to_text/R@5"
    assert [row["step"] for row in table if key in row] == [2, 3]
    assert {"loss", "lr", "logit_scale", "images_per_second", "epoch"} <= set(table[0])
    assert list(folder.glob("events.out.tfevents.*"))
    assert "chance" in output
    assert "images/s" in output
    model = create_model("RN-tiny")
    load_weights(model, folder / "final.safetensors")
    assert model.logit_scale.item() != create_model("RN-tiny").logit_scale.item()
