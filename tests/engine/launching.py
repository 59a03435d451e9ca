"""Start recipes as a user does, in processes of their own."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
QUICK = [
    *("--data.eval", "--logging.every-steps", "1", "--checkpoint.every-steps", "0"),
    *("--logging.no-tensorboard", "--logging.figures=", "--batch-size", "32"),
]


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
    return {**clean, "PATH": f"{scripts}{os.pathsep}{clean.get('PATH', '')}"}


def run(recipe: str, *options: str, ranks: int = 0, timeout: float = 600) -> str:
    """Run to the end; returns what was printed, raises with it when the run failed."""
    done = subprocess.run(
        command(recipe, *options, ranks=ranks),
        env=environment(),
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert done.returncode == 0, f"status {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout + done.stderr


def fail(recipe: str, *options: str) -> str:
    """Run a command that must be refused; returns the reason it gave."""
    done = subprocess.run(
        command(recipe, *options), env=environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 2, f"status {done.returncode}\n{done.stdout}\n{done.stderr}"
    return " ".join((done.stdout + done.stderr).replace("│", " ").split())


def rows(folder: Path) -> list[dict]:
    """Training rows of a run's metrics."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [row for row in map(json.loads, lines) if "loss" in row]


def losses(folder: Path) -> list[float]:
    return [row["loss"] for row in rows(folder)]


def norms(folder: Path) -> list[float]:
    """Gradient norms, which DeepSpeed does not give at ZeRO 0 in float32."""
    return [row["grad_norm"] for row in rows(folder)]


def signal_when(marker: Path, number: int, recipe: str, *options: str, timeout: float = 300) -> int:
    """Start a run, send it a signal as soon as ``marker`` exists; returns its exit status."""
    process = subprocess.Popen(
        command(recipe, *options),
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
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
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
