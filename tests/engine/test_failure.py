"""Ranks that fail: one account for the run, whichever of them it is, and each rank's in a file."""

import os
import re
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch

from clipfast.engine.failure import fail
from clipfast.engine.launch import Process
from tests import commands
from tests.engine.launching import REPOSITORY, environment, free_port

# What the engine does around training, without the engine: ranks meet, one raises in a step.
RANKS = """
    import os, signal, sys, time
    from pathlib import Path
    import torch, torch.distributed as dist
    from clipfast.engine.config import ConfigError
    from clipfast.engine.failure import fail, refuse_together
    from clipfast.engine.launch import current_process

    how, failing, folder = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])
    process = current_process()
    dist.init_process_group("gloo")
    try:
        dist.all_reduce(torch.ones(1))
        if process.rank == failing:
            if how == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            raise ConfigError("does not fit") if how == "config" else RuntimeError("broken here")
        dist.all_reduce(torch.ones(1))
    except ConfigError as error:
        refuse_together(process, error)
    except Exception as error:
        fail(process, error, folder)
        raise
"""


def run_ranks(tmp_path: Path, how: str, failing: int, launcher: bool = False) -> tuple[list, str]:
    """Two ranks, under torch's launcher or with rank 0 as the place where all meet.

    Returns:
        Their exit statuses, and what they printed on stderr together.
    """
    script = tmp_path / "ranks.py"
    script.write_text(textwrap.dedent(RANKS))
    words = [str(script), how, str(failing), str(tmp_path / "logs")]
    base, port = environment(), free_port()
    if launcher:
        done = subprocess.run(
            [
                *(sys.executable, "-m", "torch.distributed.run"),
                *("--nproc_per_node", "2", "--master_port", str(port), *words),
            ],
            env={**base, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            check=False,
            timeout=180,
        )
        return [done.returncode], done.stderr
    started = commands.start_ranks([sys.executable, *words], 2, port, env=base)
    said = "".join(process.communicate(timeout=180)[0] for process in started)
    return [process.returncode for process in started], said


@pytest.mark.parametrize(
    ("launcher", "failing"),
    [
        *((False, 0), (False, 1), (True, 1)),
        # The same of the other rank.
        pytest.param(True, 0, marks=pytest.mark.thorough),
    ],
)
def test_one_traceback_is_printed_and_every_rank_leaves_its_own(tmp_path, launcher, failing):
    statuses, said = run_ranks(tmp_path, "raised", failing, launcher)
    assert set(statuses) == {1}
    # Of its own accord torch may warn, "[rank1]:[W...", that its store went with rank 0.
    ours = [line for line in said.splitlines() if line.startswith(f"[rank{1 - failing}]: ")]
    assert not ours, said
    assert said.count("RuntimeError: broken here") == 1
    assert f"rank {failing} on " in said
    assert said.count("failed first") == 1
    logs = {path.name: path.read_text() for path in (tmp_path / "logs").glob("*.log")}
    assert "broken here" in logs[f"rank{failing:05d}.log"]
    if not launcher:
        # Under a launcher the others may be ended before they notice.
        assert set(logs) == {"rank00000.log", "rank00001.log"}
        assert "Traceback" in logs[f"rank{1 - failing:05d}.log"]


def test_a_rank_that_was_killed_is_told_by_one_that_is_left(tmp_path):
    statuses, said = run_ranks(tmp_path, "killed", 0)
    assert statuses == [-signal.SIGKILL, 1]
    assert re.search(r"error: rank 1 on .* lost rank 0: \w+: ", said)
    assert "Traceback" not in said


@pytest.mark.parametrize("failing", [0, 1])
def test_a_configuration_error_of_one_rank_is_printed_once(tmp_path, failing):
    statuses, said = run_ranks(tmp_path, "config", failing)
    assert statuses[failing] == 2
    assert said.count(f"error on rank {failing}: does not fit") == 1
    assert "Traceback" not in said


@pytest.mark.parametrize(
    ("options", "words"),
    [
        # As it is read, before the ranks meet, and as its data are looked for.
        (["--bach-size", "8"], "--batch-size"),
        (["--data.train", "/nowhere/a.tar"], "1 of 1 shards are missing"),
    ],
)
def test_a_wrong_option_is_told_by_rank_0_while_the_other_waits_in_silence(options, words):
    recipe = str(REPOSITORY / "recipes" / "emoji.py")
    first, second = commands.start_ranks(
        [sys.executable, recipe, *options], 2, free_port(), env=environment()
    )
    try:
        said = first.communicate(timeout=120)[0]
        assert first.returncode == 2
        assert words in " ".join(said.replace("│", " ").split())
        # A launcher that met this one's end first would end rank 0 in the middle of a word.
        assert second.poll() is None
    finally:
        second.terminate()
        assert second.communicate(timeout=60)[0] == ""


def test_a_single_process_keeps_its_exception(tmp_path):

    fail(Process(0, 0, 1, 1, torch.device("cpu")), ValueError("alone"), tmp_path / "logs")
    assert "ValueError: alone" in (tmp_path / "logs" / "rank00000.log").read_text()
    (tmp_path / "file").touch()
    fail(Process(0, 0, 1, 1, torch.device("cpu")), ValueError("alone"), tmp_path / "file" / "logs")
    assert os.listdir(tmp_path / "logs") == ["rank00000.log"]
