"""Whole runs on a GPU: every stage and precision learns, and each way of saving memory is exact."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch

from tests.engine.launching import PAPER, REPOSITORY, environment, losses, norms, rows

RUN = (
    *("--data.train", "synthetic:64", "--data.eval", "--batch-size", "64", "--max-steps", "12"),
    *("--optimizer.lr", "5e-4", "--schedule.warmup-steps", "2", "--checkpoint.every-steps", "0"),
    *("--logging.every-steps", "1", "--logging.no-tensorboard", "--logging.figures="),
    "--logging.no-progress",
)
BF16 = ("--precision", "bf16")
# And the type that weights without masters have.
PRECISIONS = {"fp32": torch.bfloat16, "bf16": torch.bfloat16, "fp16": torch.float16}
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.slow,
    pytest.mark.needs("deepspeed", "tyro", "safetensors"),
]


def start(*arguments: str) -> str:
    """Run the program; returns what it printed."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.engine.one_batch", *arguments],
        env=environment(),
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, f"status {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout + done.stderr


def train(folder: Path, *options: str) -> tuple[Path, str]:
    """A run of the same 64 pairs: its folder, and what it printed."""
    words = start(*RUN, "--logging.dir", str(folder), *options)
    return folder / "emoji", words


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(folder / "final.safetensors")


@pytest.mark.parametrize("stage", ["0", "1", "2", "3"])
def test_a_gpu_learns_at_every_stage_in_every_precision_and_goes_on(tmp_path, stage):
    given = ["--logging.dir", str(tmp_path), "--micro-batch", "16", "--zero-stage", stage]
    runs = {}
    for precision in PRECISIONS:
        for name, optimizer in (("exact", ()), ("paper", PAPER)):
            run = f"{name}-{precision}"
            options = [*RUN, *given, "--precision", precision, *optimizer]
            saved = str(tmp_path / run / "checkpoints" / "step00000008")
            runs[run] = [*options, "--logging.name", run, "--checkpoint.every-steps", "8"]
            runs[f"{run}-resumed"] = [*options, "--logging.name", f"{run}-resumed"]
            runs[f"{run}-resumed"] += ["--resume", saved]
    (tmp_path / "runs.json").write_text(json.dumps([*runs.values()]))
    start(str(tmp_path / "runs.json"))
    for precision, half in PRECISIONS.items():
        for name in ("exact", "paper"):
            folder = tmp_path / f"{name}-{precision}"
            whole = losses(folder)
            # From log 64 = 4.16 on. Loss scaling may skip the first steps of fp16.
            assert whole[0] > 3.5
            assert whole[-1] < 0.3, folder.name
            text = weights(folder)["text_projection"]
            assert torch.equal(text, text.to(half).float()) == (name == "paper")
            # Kernels of a GPU may add in another order.
            again = losses(tmp_path / f"{folder.name}-resumed")
            assert again == pytest.approx(whole[8:], rel=0.05, abs=0.01), folder.name


@pytest.mark.parametrize(("before", "after"), [("1", "3"), ("3", "2"), ("2", "0")])
def test_a_gpus_run_goes_on_at_another_stage_from_a_save_in_the_background(tmp_path, before, after):
    options = ["--micro-batch", "16", *BF16, *PAPER]
    saved = ["--checkpoint.every-steps", "4", "--checkpoint.background", "--checkpoint.keep", "9"]
    folder, _ = train(tmp_path, *options, "--zero-stage", before, *saved)
    whole = losses(folder)
    there = str(folder / "checkpoints" / "step00000004")
    _, words = train(tmp_path, *options, "--zero-stage", after, "--resume", there)
    assert f"ZeRO stage {before} -> {after}" in words
    # Early losses fall fast: a state that was not carried would show.
    assert losses(folder)[4:] == pytest.approx(whole[4:], rel=0.1, abs=0.02)


def test_graphs_that_are_kept_give_what_two_passes_give(tmp_path):
    options = ["--micro-batch", "16", "--model.name", "ViT-tiny"]
    whole, _ = train(tmp_path / "whole", "--model.name", "ViT-tiny")
    twice, _ = train(tmp_path / "twice", *options)
    kept, _ = train(tmp_path / "kept", *options, "--keep-graphs", "2")
    # Adam makes much of small differences once the loss is small.
    for other in (twice, kept):
        assert losses(other)[:5] == pytest.approx(losses(whole)[:5], rel=0.01)
        assert norms(other)[:4] == pytest.approx(norms(whole)[:4], rel=0.02)


def test_a_gpus_micro_batch_is_chosen_by_its_memory_and_said(tmp_path):
    _, words = train(tmp_path, "--micro-batch", "auto", *BF16)
    assert "micro-batch: auto -> " in words


def test_batch_norm_of_given_groups_does_not_depend_on_micro_batches(tmp_path):
    options = ["--bn-batch", "8", "--max-steps", "5"]
    whole, _ = train(tmp_path / "whole", *options)
    cut, _ = train(tmp_path / "cut", *options, "--micro-batch", "16")
    assert losses(cut) == pytest.approx(losses(whole), rel=0.02, abs=0.005)


@pytest.mark.parametrize("mode", ["selective", "full"])
def test_what_is_computed_again_is_the_same_and_takes_less_memory(tmp_path, mode):
    options = ["--model.name", "ViT-tiny", *BF16, "--batch-size", "512", "--data.train"]
    options += ["synthetic:512", "--max-steps", "4", "--model.recompute"]
    kept, _ = train(tmp_path / "kept", *options, "none")
    again, _ = train(tmp_path / "again", *options, mode)
    assert losses(again) == pytest.approx(losses(kept), rel=0.01)
    peak = [rows(folder)[-1]["memory/device"] for folder in (kept, again)]
    assert peak[1] < 0.8 * peak[0]


def test_a_gpus_profile_says_what_it_computed(tmp_path):
    folder, _ = train(tmp_path, *BF16, "--profile", "3")
    told = json.loads((folder / "profile" / "summary.json").read_text())
    parts = ("compute", "exposed", "data", "idle")
    assert told["step"] == pytest.approx(sum(told[part] for part in parts), rel=1e-6)
    assert 0 < told["compute"] <= told["step"]
    assert {"forward", "loss", "backward", "optimizer"} <= set(told["spans"])


def test_a_gpu_counts_what_it_did(tmp_path):
    folder, _ = train(tmp_path, *BF16)
    last = rows(folder)[-1]
    assert 0 < last["memory/device"] <= last["memory/device_reserved"]
    assert 0 < last["mfu"] < 1
