"""recipes/launch/train.sbatch and what it starts, under programs that stand in for Slurm's."""

import json
import os
import signal
import subprocess
import sys

import pytest
import torch.distributed.run as torchrun

from tests.campaigns.subject import RECIPE, wait_until
from tests.campaigns.traces import last_step, losses
from tests.engine.launching import REPOSITORY, environment, free_port
from tests.engine.slurm import Job

RUN = ["--logging.name", "run", "--logging.dir", "runs", "--max-steps"]


def stand_in(folder, code):
    """A Python that notes what it is asked for and ends with an exit code."""
    program = folder / "python"
    program.write_text(
        f'#!/bin/sh\nfor word; do echo "$word" >> asked-$SLURM_NODEID; done\nexit {code}\n'
    )
    program.chmod(0o755)
    return {"PYTHON": str(program)}


@pytest.mark.parametrize(
    ("code", "status", "is_requeued"), [(0, 0, False), (75, 0, True), (2, 2, False), (1, 0, True)]
)
def test_slurm_job_is_started_again_where_that_can_help(tmp_path, code, status, is_requeued):
    job = Job(tmp_path, variables=stand_in(tmp_path, code))
    assert job.run("recipe.py")[0] == status
    assert job.requeued == [str(os.getpid())] * is_requeued


def test_slurm_job_that_fails_again_and_again_is_given_up(tmp_path):
    job = Job(tmp_path, variables={**stand_in(tmp_path, 1), "MAX_FAILURES": "3"})
    assert [job.run("recipe.py")[0] for _ in range(3)] == [0, 0, 1]
    assert len(job.requeued) == 2
    # An interruption between them begins the count anew, and so does a new job.
    job.run("recipe.py")
    stand_in(tmp_path, 75)
    job.run("recipe.py")
    stand_in(tmp_path, 1)
    assert [job.run("recipe.py")[0] for _ in range(3)] == [0, 0, 1]


def test_slurm_job_starts_a_launcher_on_each_node(tmp_path):
    job = Job(tmp_path, variables={**stand_in(tmp_path, 0), "RANKS_PER_NODE": "8"})
    job.run("recipes/vit_b32.py", "--data.train", "with a space/*.tar")
    for node in (0, 1):
        asked = (tmp_path / f"asked-{node}").read_text().splitlines()
        assert asked[:2] == ["-m", "clipfast.torchrun"]
        given = torchrun.parse_args(asked[2:])
        assert (given.nnodes, given.nproc_per_node, given.node_rank) == ("2", "8", node)
        assert (given.master_addr, given.master_port) == ("localhost", 20000 + os.getpid() % 20000)
        assert given.training_script == "recipes/vit_b32.py"
        assert given.training_script_args == [
            *("--data.train", "with a space/*.tar", "--resume", "latest")
        ]


@pytest.mark.slow
def test_slurm_job_of_two_nodes_is_interrupted_requeued_and_goes_on(tmp_path):
    job = Job(tmp_path)
    first = job.start(str(RECIPE), *RUN, "4000")
    try:
        assert wait_until(lambda: last_step(tmp_path / "runs/run") or first.poll() is not None, 120)
        job.signal()
        said, _ = first.communicate(timeout=120)
    finally:
        first.kill()
    assert "Interrupted by SIGUSR1" in said
    assert "Ended with status 75; the job goes on from the newest checkpoint" in said
    assert job.requeued == [str(os.getpid())]
    steps = last_step(tmp_path / "runs/run")
    status, said = job.run(
        *(str(RECIPE), *RUN, str(steps + 2), "--resume-with-changes"), seconds=180
    )
    assert status == 0, said
    assert [step for step, _ in losses(tmp_path / "runs/run")] == list(range(1, steps + 3))
    starts = json.loads((tmp_path / "runs/run/run.json").read_text())["starts"]
    assert [start["ended"]["status"] for start in starts] == ["interrupted", "finished"]
    assert len(job.requeued) == 1


# A rank of a moment, which ends at a signal or at once.
RANK = """
import signal, sys, time
for number in (signal.SIGUSR1, signal.SIGTERM):
    signal.signal(number, lambda *_: sys.exit(75))
print("here", flush=True)
if sys.argv[1] == "refuse":
    sys.exit(2)
time.sleep(60)
"""


@pytest.mark.parametrize(
    ("act", "code"), [("USR1", 75), ("TERM", 75), ("refuse", 2), ("kill the rank", 137)]
)
def test_torchrun_ends_as_its_rank_does(tmp_path, act, code):
    program = tmp_path / "rank.py"
    program.write_text(RANK)
    line = [sys.executable, "-m", "clipfast.torchrun", "--nproc-per-node", "1"]
    process = subprocess.Popen(
        [*line, "--master-port", str(free_port()), str(program), act],
        cwd=REPOSITORY,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    ready = process.stdout.readline()
    if act == "kill the rank":
        subprocess.run(["pkill", "-KILL", "-P", str(process.pid)], check=True)
    elif act != "refuse":
        process.send_signal(getattr(signal, f"SIG{act}"))
    _, said = process.communicate(timeout=60)
    assert (ready, process.returncode) == ("here\n", code), said
