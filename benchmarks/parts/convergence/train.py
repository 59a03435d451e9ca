"""One training in a process of its own, and its row."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.parts.common.harness import CheckFailed, Row
from benchmarks.parts.common.peers import open_clip_version
from benchmarks.parts.convergence.evaluate import recalls_of
from benchmarks.parts.convergence.programs import start_of
from benchmarks.parts.convergence.settings import (
    OURS,
    PAIRS,
    STARTED,
    Settings,
    log_folder,
    recipe,
)

ROOT = Path(__file__).resolve().parents[3]
EPOCH = PAIRS // recipe().batch_size  # steps


def train(settings: Settings, shards: Path, folder: Path, packages: Path | None = None) -> Row:
    """Train, then measure retrieval.

    Args:
        settings: Of the training.
        shards: See :func:`shards.write_shards`.
        folder: Empty; what the program writes stays there.
        packages: What OpenCLIP's script needs beside what is installed.

    Returns:
        Its row: recalls as ``sample/noto/image_to_text/R@1``, ``final_loss`` (mean of the last
        epoch), ``losses`` and ``logit_scale``. ``seconds`` and ``cpu_seconds`` (user and system of
        all its processes) are of the whole program, ``train_seconds`` and ``train_cpu_seconds``
        from the first step on.

    Raises:
        RuntimeError: The program failed; with the end of what it said.
        CheckFailed: It took another number of steps, or a loss is not finite.
    """
    program = settings.contender.program
    folder.mkdir(parents=True)
    command = [sys.executable, *start_of(program), str(folder)]
    command += settings.command(shards, folder)
    # ninja, which DeepSpeed's first start looks for, lies beside the interpreter.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    places = [str(ROOT), *([] if program == OURS or packages is None else [str(packages)])]
    environment = {
        **os.environ,
        "PATH": path,
        "PYTHONPATH": os.pathsep.join(places),
        "OMP_NUM_THREADS": str(settings.threads),
    }
    output = folder / "output.txt"
    began = time.monotonic()
    with output.open("w") as said:
        process = subprocess.Popen(
            command, stdout=said, stderr=subprocess.STDOUT, env=environment, cwd=folder
        )
        # Its own and of all processes that it waited for.
        _, status, usage = os.wait4(process.pid, 0)
    seconds = time.monotonic() - began
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"{settings}:\n{output.read_text()[-3000:]}")
    losses, scale, ended = (_our_log if program == OURS else _their_log)(folder)
    if len(losses) != settings.steps or not all(map(math.isfinite, losses)):
        raise CheckFailed(
            f"{settings}: expected {settings.steps} finite losses, got {len(losses)}: {losses[-3:]}"
        )
    started = json.loads((folder / STARTED).read_text())
    cpu_seconds = usage.ru_utime + usage.ru_stime
    return {
        "name": name_of(settings),
        "seed": settings.seed,
        "epochs": settings.epochs,
        "steps": settings.steps,
        "threads": settings.threads,
        "final_loss": sum(losses[-EPOCH:]) / EPOCH,
        **recalls_of(settings.weights(folder), settings.contender.context_length),
        "logit_scale": scale,
        "seconds": seconds,
        "train_seconds": ended - started["time"],
        "cpu_seconds": cpu_seconds,
        "train_cpu_seconds": cpu_seconds - started["cpu_seconds"],
        "losses": losses,
        "device": "cpu",
        "checked": True,
    }


def name_of(settings: Settings) -> str:
    """A contender's name in rows."""
    contender = settings.contender
    version = "" if contender.program == OURS else f" {open_clip_version()}"
    return f"{contender.program}{version}{contender.note}"


def _our_log(folder: Path) -> tuple[list[float], float, float]:
    """Losses, the last scale, and when the last step ended."""
    lines = (log_folder(folder) / "metrics.jsonl").read_text().splitlines()
    rows = [row for row in map(json.loads, lines) if "loss" in row]
    return [row["loss"] for row in rows], rows[-1]["logit_scale"], rows[-1]["time"]


def _their_log(folder: Path) -> tuple[list[float], float, float]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(
        str(log_folder(folder) / "tensorboard"), size_guidance={"scalars": 0}
    ).Reload()
    losses = events.Scalars("train/loss")
    scale = events.Scalars("train/scale")[-1].value
    return [event.value for event in losses], scale, losses[-1].wall_time
