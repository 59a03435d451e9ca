"""As much of Slurm as `recipes/launch/train.sbatch` sees: srun, scontrol, a job."""

import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.engine.launching import REPOSITORY, environment

SCRIPT = REPOSITORY / "recipes" / "launch" / "train.sbatch"
# The same command on each node; signals go on to all, the largest exit code counts.
_SRUN = """#!{python}
import os, signal, subprocess, sys
words = sys.argv[1:]
while words[0].startswith("-"):
    words.pop(0)
nodes = int(os.environ["SLURM_JOB_NUM_NODES"])
tasks = [
    subprocess.Popen(words, env={{**os.environ, "SLURM_NODEID": str(n), "SLURM_PROCID": str(n)}})
    for n in range(nodes)
]
for number in (signal.SIGUSR1, signal.SIGTERM):
    signal.signal(number, lambda number, _: [task.send_signal(number) for task in tasks])
open({folder!r} + "/srun.pid", "w").write(str(os.getpid()))
codes = [task.wait() for task in tasks]
sys.exit(max(code if code >= 0 else 128 - code for code in codes))
"""
_SCONTROL = """#!/bin/sh
case $1 in
show) printf 'localhost\\nother\\n' ;;
requeue) echo "$2" >> {folder}/requeued ;;
esac
"""


class Job:
    """One job, which can be started again.

    Args:
        folder: for the programs that stand in for Slurm's, and for what the job leaves.
        nodes: of the job, each of which is this machine.
        variables: of the environment that it was submitted from.
    """

    def __init__(self, folder: Path, nodes: int = 2, variables: Mapping[str, str] = {}) -> None:
        self.folder = folder
        for name, text in (("srun", _SRUN), ("scontrol", _SCONTROL)):
            program = folder / name
            program.write_text(text.format(python=sys.executable, folder=str(folder)))
            program.chmod(0o755)
        clean = environment()
        self._environment = {
            **clean,
            "PATH": f"{folder}{os.pathsep}{clean['PATH']}",
            "PYTHONPATH": str(REPOSITORY),
            "PYTHON": sys.executable,
            "RANKS_PER_NODE": "1",
            # Of the numbers that jobs have: the script makes a port of it.
            "SLURM_JOB_ID": str(os.getpid()),
            "SLURM_JOB_NAME": "clipfast",
            "SLURM_JOB_NODELIST": "node[1-2]",
            "SLURM_JOB_NUM_NODES": str(nodes),
            **variables,
        }

    def start(self, *words: str) -> "subprocess.Popen[str]":
        """Run the script as Slurm does."""
        return subprocess.Popen(
            ["bash", str(SCRIPT), *words],
            cwd=self.folder,
            env=self._environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, *words: str, seconds: float = 60) -> tuple[int, str]:
        """The same, to its end: exit code and what it printed."""
        process = self.start(*words)
        said, _ = process.communicate(timeout=seconds)
        return process.returncode, said

    def signal(self) -> None:
        """The time is over: Slurm tells the tasks of the step."""
        os.kill(int((self.folder / "srun.pid").read_text()), signal.SIGUSR1)

    @property
    def requeued(self) -> Sequence[str]:
        """The jobs that were put into the queue again."""
        file = self.folder / "requeued"
        return file.read_text().split() if file.exists() else []
