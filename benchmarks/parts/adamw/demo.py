"""The demo trained from the same seeds with different optimizers, and how far apart it ends.

    fp32      float32 statistics and weights
    paper     fp16 statistics, stochastic half-precision text weights, exact image weights
    nearest   float32 statistics; both towers' weights in half precision, rounded to nearest: the
              control, which stalls once updates fall under half a unit in the last place

A pair is two runs of one seed: the same starting weights, batches and crops. ``demo_report.py``
compares them.
"""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from tqdm import tqdm

from benchmarks.parts.common import rows as files
from benchmarks.parts.common.harness import Row
from clipfast.env import stamp

ROOT = Path(__file__).resolve().parents[3]
SUBJECT = "adamw_demo"
RECIPE = [str(ROOT / "recipes" / "emoji.py")]
TO_NEAREST = ["-c", "from benchmarks.parts.adamw.demo import train_to_nearest; train_to_nearest()"]
# The program, its statistics, its text and its image weights.
RUNS = {
    "fp32": (RECIPE, "fp32", "fp32", "fp32"),
    "paper": (RECIPE, "fp16", "stochastic", "remainder"),
    "nearest": (TO_NEAREST, "fp32", "stochastic", "stochastic"),
}
CONTROLS = ("nearest",)
EPOCH = 7  # steps
# The last part of the cosine, where the rate is under 15% of its peak.
LATE = 0.75
METRICS = {
    "final_loss": "loss, last 7 steps",
    "late_loss": f"loss, last {1 - LATE:.0%} of the steps",
    "recall_trained": "R@1 on the trained artist",
    "recall_unseen": "R@1 on the other artist",
}


def run(
    seeds: Iterable[int],
    names: Sequence[str],
    *,
    max_steps: int | None = None,
    save: bool = True,
    directory: Path | None = None,
) -> list[Row]:
    """Train each seed with each optimizer, unless its row is there.

    Args:
        seeds: Of weights, order and crops.
        names: Of :data:`RUNS`.
        max_steps: Shortens the runs.
        save: Append each row to the results as it comes; rows that are there are not run again.
        directory: Of the results, ``benchmarks/results`` if None.

    Returns:
        One row per run, those that were there included.
    """
    path = (directory or files.RESULTS) / f"{SUBJECT}.jsonl"
    rows = files.read_file(path) if save and path.exists() else []
    wanted = [(name, seed) for seed in seeds for name in names]
    rows = [row for row in rows if (row["name"], row["seed"]) in wanted]
    done = {(row["name"], row["seed"]) for row in rows}
    missing = [pair for pair in wanted if pair not in done]
    with tqdm(missing, unit=" runs", leave=False) as bar:
        for name, seed in bar:
            bar.set_description(f"{name}, seed {seed}")
            row = train(name, seed, max_steps)
            bar.write(
                f"{name}, seed {seed}: loss {row['final_loss']:.4f}, R@1 "
                f"{row['recall_trained']:.1%} and {row['recall_unseen']:.1%}, "
                f"{row['seconds']:.0f} s"
            )
            rows.append(row)
            if save:
                files.append_rows(path, files.stamped(SUBJECT, [row], stamp()))
    return rows


def train(name: str, seed: int, max_steps: int | None = None) -> Row:
    """One run, in a process of its own.

    Args:
        name: Of :data:`RUNS`.
        seed: As ``--seed``.
        max_steps: As ``--max-steps``.

    Returns:
        Its row: :data:`METRICS`, ``steps``, ``seconds``, and every step's loss.

    Raises:
        RuntimeError: The run failed; with the end of what it said.
    """
    program, stats, text, image = RUNS[name]
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, *program, "--seed", str(seed)]
        command += ["--optimizer.stats", stats]
        command += ["--optimizer.text-weights", text, "--optimizer.image-weights", image]
        command += ["--logging.dir", folder, "--logging.every-steps", "1", "--logging.figures="]
        command += ["--logging.no-tensorboard", "--logging.no-progress"]
        command += ["--eval.every", "0", "--checkpoint.every-steps", "0"]
        command += ["--max-steps", str(max_steps)] if max_steps else []
        # ninja, which DeepSpeed's first start looks for, lies beside the interpreter.
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
        environment = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT)}
        began = time.monotonic()
        done = subprocess.run(
            command, capture_output=True, text=True, env=environment, cwd=folder, check=False
        )
        seconds = time.monotonic() - began
        if done.returncode:
            raise RuntimeError(f"{name}, seed {seed}:\n{(done.stdout + done.stderr)[-3000:]}")
        lines = (Path(folder) / "emoji" / "metrics.jsonl").read_text().splitlines()
    metrics = figures([json.loads(line) for line in lines])
    options = {"stats": stats, "text_weights": text, "image_weights": image}
    return {
        "name": name,
        "seed": seed,
        **options,
        **metrics,
        "seconds": seconds,
        "device": "cpu",
        # What is compared are whole trainings: an unfinished one has raised.
        "checked": True,
    }


def train_to_nearest() -> None:
    """The demo with weights rounded to nearest, its options from the command line."""
    from clipfast.engine import main
    from clipfast.engine.builders import Builders
    from clipfast.engine.optimizer import build_optimizer
    from recipes.emoji import config

    to_nearest = functools.partial(build_optimizer, rounding="nearest")
    main(config(), builders=Builders(optimizer=to_nearest))


def figures(rows: Sequence[dict[str, float]]) -> Row:
    """The figures of one run.

    Args:
        rows: Of its ``metrics.jsonl``.

    Returns:
        ``steps``, ``losses`` of all steps, and :data:`METRICS`; recalls are means of both
        directions at the end.
    """
    losses = [row["loss"] for row in rows if "loss" in row]
    last = {}
    for row in rows:
        last.update({key: value for key, value in row.items() if key.startswith("eval/")})
    late = losses[int(LATE * len(losses)) :]
    ends = losses[-EPOCH:]
    return {
        "steps": len(losses),
        "final_loss": sum(ends) / len(ends),
        "late_loss": sum(late) / len(late),
        "recall_trained": _recall(last, "noto"),
        "recall_unseen": _recall(last, "twemoji"),
        "losses": losses,
    }


def _recall(last: dict[str, float], source: str) -> float:
    found = [value for key, value in last.items() if f"{source}/" in key and key.endswith("/R@1")]
    return sum(found) / len(found)
