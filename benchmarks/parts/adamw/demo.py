"""The demo trained from the same seeds with different optimizers, and how far apart it ends.

    fp32      float32 statistics and weights
    paper     fp16 statistics, stochastic half-precision text weights, exact image weights
    nearest   float32 statistics; both towers' weights in half precision, rounded to nearest: the
              control, which stalls once updates fall under half a unit in the last place

A pair is two runs of one seed: the same starting weights, batches and crops. Runs part within a few
dozen steps even so, as any two roundings do, and the difference of a pair is then about as large as
that of two seeds; so the mean over pairs is set beside its standard error and beside the deviation
of fp32's own seeds.
"""

from __future__ import annotations

import functools
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from tqdm import tqdm

from benchmarks.parts.common import harness
from benchmarks.parts.common.harness import Row

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
# Two-sided 95% of Student's distribution, by pairs less one.
_STUDENT = (math.inf, 12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26, 2.23)
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
    directory: Path = harness.RESULTS,
) -> list[Row]:
    """Train each seed with each optimizer, unless its row is there.

    Args:
        seeds: Of weights, order and crops.
        names: Of :data:`RUNS`.
        max_steps: Shortens the runs.
        save: Append each row to the results as it comes; rows that are there are not run again.
        directory: Of the results.

    Returns:
        A row a run, those that were there included.
    """
    is_begun = (directory / f"{SUBJECT}.jsonl").exists()
    rows = harness.read_rows(SUBJECT, directory=directory) if save and is_begun else []
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
                harness.write_rows(SUBJECT, [row], directory=directory, append=True)
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
        command += ["--logging.eval-every-steps", "0", "--checkpoint.every-steps", "0"]
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


def compare(rows: Sequence[Row], name: str, metric: str) -> Row | None:
    """Paired differences from fp32.

    Args:
        rows: Of :func:`run`.
        name: Whose.
        metric: Of :data:`METRICS`.

    Returns:
        ``pairs``, fp32's ``mean`` and the ``deviation`` of its seeds, the mean ``difference``, its
        ``error``, the half width of its 95% ``interval``, and ``is_equivalent``: it differs where
        the difference is beyond both that interval and the deviation of seeds. The interval says
        what few pairs leave open. None with fewer than two pairs.
    """
    base = {row["seed"]: row[metric] for row in rows if row["name"] == "fp32"}
    own = {row["seed"]: row[metric] for row in rows if row["name"] == name}
    seeds = sorted(base.keys() & own.keys())
    if len(seeds) < 2:
        return None
    differences = [own[seed] - base[seed] for seed in seeds]
    mean = statistics.fmean(differences)
    error = statistics.stdev(differences) / math.sqrt(len(seeds))
    deviation = statistics.stdev(base[seed] for seed in seeds)
    student = _STUDENT[min(len(seeds) - 1, len(_STUDENT) - 1)]
    return {
        "pairs": len(seeds),
        "mean": statistics.fmean(base[seed] for seed in seeds),
        "deviation": deviation,
        "difference": mean,
        "error": error,
        "interval": student * error,
        "is_equivalent": abs(mean) <= max(student * error, deviation),
    }


def table(rows: Sequence[Row]) -> str:
    """One line an optimizer and metric."""
    lines = [
        f"{'':9}{'':28}{'pairs':>6}{'fp32':>9}{'its seeds +-':>14}{'difference':>12}{'+-':>9}"
        f"{'95% +-':>12}"
    ]
    for name in [name for name in RUNS if name != "fp32"]:
        for metric, told in METRICS.items():
            found = compare(rows, name, metric)
            if found is None:
                continue
            verdict = "within seed variance" if found["is_equivalent"] else "DIFFERS"
            lines.append(
                f"{name:9}{told:28}{found['pairs']:6}{found['mean']:9.4f}{found['deviation']:14.4f}"
                f"{found['difference']:+12.4f}{found['error']:9.4f}{found['interval']:12.4f}"
                f"   {verdict}"
            )
    return "\n".join(lines) if len(lines) > 1 else "fewer than two pairs: nothing to compare"


def plot(rows: Sequence[Row], path: Path) -> Path:
    """Draw the loss by epoch, and how far above fp32's of the same seed it is.

    Args:
        rows: Of :func:`run`.
        path: PNG to write.

    Returns:
        The file written.
    """
    # The object interface: pyplot would pick a display and keep the figure alive.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    epochs = {
        (row["name"], row["seed"]): [
            statistics.fmean(row["losses"][i : i + EPOCH]) for i in range(0, row["steps"], EPOCH)
        ]
        for row in rows
    }
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    losses, distances = figure.subplots(1, 2)
    for color, name in enumerate(RUNS):
        seeds = [seed for other, seed in epochs if other == name]
        for i, seed in enumerate(seeds):
            label = None if i else f"{name}, {len(seeds)} seeds"
            style = {"color": f"C{color}", "label": label, "linewidth": 1, "alpha": 0.8}
            curve = epochs[name, seed]
            losses.plot(range(1, len(curve) + 1), curve, **style)
            base = epochs.get(("fp32", seed))
            if name != "fp32" and base is not None:
                apart = [own - other for own, other in zip(curve, base, strict=True)]
                distances.plot(range(1, len(curve) + 1), apart, **style)
    losses.set_yscale("log")
    losses.minorticks_off()
    losses.set_yticks([0.2, 0.5, 1.0, 2.0, 5.0], ["0.2", "0.5", "1", "2", "5"])
    losses.set_title("The demo's loss", fontsize=10)
    distances.axhline(0.0, color="C0", linewidth=1)
    distances.set_title("above fp32's of the same seed", fontsize=10)
    for axes in (losses, distances):
        axes.set_xlabel("epoch, the rate going along its cosine to 0")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    return path


def complaints(rows: Sequence[Row]) -> list[str]:
    """What contradicts equivalence, and controls that cannot be told from fp32."""
    found = []
    for name in [name for name in RUNS if name != "fp32"]:
        verdicts = {metric: compare(rows, name, metric) for metric in METRICS}
        verdicts = {metric: verdict for metric, verdict in verdicts.items() if verdict}
        differs = [METRICS[m] for m, verdict in verdicts.items() if not verdict["is_equivalent"]]
        if name in CONTROLS and verdicts and not differs:
            found.append(f"{name}: a control, and it trains like fp32")
        if name not in CONTROLS:
            found += [f"{name}: {metric} differs from fp32's" for metric in differs]
    return found
