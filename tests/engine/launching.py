"""Start recipes as a user does, in processes of their own, or many of them in turn in one."""

import importlib.util
import json
import os
import re
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests import commands
from tests.ranks import run_ranks

REPOSITORY = Path(__file__).resolve().parents[2]
QUICK = [
    *("--data.eval", "--logging.every-steps", "1", "--checkpoint.every-steps", "0"),
    *("--logging.no-tensorboard", "--logging.figures=", "--batch-size", "32"),
]


# Radford et al. 2021, section 2.5.
PAPER = (
    *("--optimizer.stats", "fp16", "--optimizer.image-weights", "remainder"),
    *("--optimizer.text-weights", "stochastic"),
)
# Processes whose losses are compared bit for bit must not each race the libraries for themselves.
SAME_SUMS = {"CLIPFAST_CPU_PRODUCTS": "mkl"}


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def command(recipe: str, *options: str, ranks: int = 0) -> list[str]:
    """The command line: plain python, or DeepSpeed's launcher where ``ranks`` is given."""
    script = [str(REPOSITORY / "recipes" / recipe), *options]
    if not ranks:
        return [sys.executable, *script]
    launcher = [sys.executable, "-m", "deepspeed.launcher.runner"]
    return [*launcher, "--num_gpus", str(ranks), "--master_port", str(free_port()), *script]


def environment() -> dict[str, str]:
    # Ranks of a test share two cores; a rank alone may use both.
    clean = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    scripts = str(Path(sys.executable).parent)
    return {**clean, **SAME_SUMS, "PATH": f"{scripts}{os.pathsep}{clean.get('PATH', '')}"}


def run(recipe: str, *options: str, ranks: int = 0, timeout: float = 600) -> str:
    """Run to the end; returns what was printed, raises with it when the run failed."""
    # A launcher starts its ranks itself.
    line = command(recipe, *options, ranks=ranks)
    done = commands.run(line, env=environment(), timeout=timeout)
    assert done.returncode == 0, f"status {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout + done.stderr


def fail(recipe: str, *options: str) -> str:
    """Run a command that must be refused; returns the reason it gave."""
    done = commands.run(command(recipe, *options), env=environment())
    assert done.returncode == 2, f"status {done.returncode}\n{done.stdout}\n{done.stderr}"
    return " ".join((done.stdout + done.stderr).replace("│", " ").split())


def train_in_turn(
    folder: Path, runs: Mapping[str, Sequence[str]], ranks: int = 1, recipe: str = "emoji.py"
) -> None:
    """Train a recipe once for each entry, one after the other in the same processes.

    Starting an interpreter, torch and DeepSpeed takes longer than some steps of a tiny model.

    Args:
        folder: run NAME leaves what it leaves in FOLDER/NAME.
        runs: names and command lines.
        ranks: how many processes share each of them.
        recipe: the file, in recipes or anywhere.
    """
    run_ranks(ranks, _trainings, str(folder), dict(runs), free_port(), recipe)


def start_rank(port: int):
    """Give DeepSpeed the environment that it reads, inside a process that ``run_ranks`` started.

    Returns:
        clipfast.engine.launch.Process.
    """
    import torch.distributed as dist

    from clipfast.engine.launch import current_process, start

    rank, world_size = dist.get_rank(), dist.get_world_size()
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    values = (rank, rank, world_size, world_size, "127.0.0.1", port)
    os.environ.update(zip(names, map(str, values), strict=True))
    process = current_process()
    start(process)
    return process


def _trainings(
    folder: str, runs: dict[str, Sequence[str]], port: int, file: str = "emoji.py"
) -> None:
    from clipfast.engine.cli import parse
    from clipfast.engine.plan import decide
    from clipfast.engine.trainer import Trainer

    os.environ.update(SAME_SUMS)
    process = start_rank(port)
    specification = importlib.util.spec_from_file_location("recipe", REPOSITORY / "recipes" / file)
    recipe = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(recipe)
    for name, options in runs.items():
        arguments = [*QUICK, "--logging.no-progress", "--logging.dir", folder]
        config = parse(recipe.config(), [*arguments, "--logging.name", name, *options])
        try:
            trainer = Trainer(decide(config, process))
            trainer.run()
            trainer.engine.destroy()
        except Exception as error:
            raise RuntimeError(f"run {name}: {' '.join(options)}") from error


def rows(folder: Path) -> list[dict]:
    """Training rows of a run's metrics."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [row for row in map(json.loads, lines) if "loss" in row]


def documented(*when: str) -> set[str]:
    """Names of figures in docs/watching.md.

    Args:
        when: they are written, as the table says; none: all of them.
    """
    text = (REPOSITORY / "docs" / "watching.md").read_text()
    rows = re.findall(r"^\| `([a-z_/]+)` \|.*\| ([^|]+) \|$", text, re.MULTILINE)
    return {name for name, then in rows if not when or then in when}


def losses(folder: Path) -> list[float]:
    return [row["loss"] for row in rows(folder)]


def norms(folder: Path) -> list[float]:
    """Gradient norms of the whole model."""
    return [row["grad_norm"] for row in rows(folder)]


def signal_when(marker: Path, number: int, recipe: str, *options: str, timeout: float = 300) -> int:
    """Start a run, send it a signal as soon as ``marker`` exists; returns its exit status."""
    process = commands.Started(command(recipe, *options), env=environment())
    deadline = time.monotonic() + timeout
    try:
        while not marker.exists():
            assert process.poll() is None, "the run ended before the signal"
            assert time.monotonic() < deadline, f"no {marker} after {timeout} s"
            time.sleep(0.05)
        process.send_signal(number)
        return process.wait(timeout)
    finally:
        if process.poll() is None:
            process.kill()
