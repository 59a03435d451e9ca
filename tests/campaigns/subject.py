"""The engine under attack: a checkout and its Python, started as a user starts them."""

import os
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

RECIPE = Path(__file__).with_name("recipe.py")
LAUNCHERS = ("deepspeed", "torchrun")
_MARK = "CLIPFAST_CAMPAIGN"
_FROM_A_LAUNCHER = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
_LAUNCHER_MODULES = ("deepspeed.launcher", "torch.distributed.run")


@dataclass(frozen=True)
class Ended:
    """What a process left.

    Attributes:
        status: its exit code, negative for a signal.
        output: everything that it printed, in one line.
    """

    status: int
    output: str


@dataclass
class Started:
    """A run that is under way, with all of its processes.

    Attributes:
        process: the one that was started: the run itself, or its launcher.
        log: where it prints to.
        mark: stands in the environment of each of its processes.
    """

    process: subprocess.Popen
    log: Path
    mark: str

    def pids(self) -> list[int]:
        """Every process of the run that lives, whoever its parent is by now."""
        wanted = f"{_MARK}={self.mark}".encode()
        return [pid for pid in _all_pids() if wanted in _read(pid, "environ").split(b"\0")]

    def ranks(self) -> list[int]:
        """Those that train."""
        return [pid for pid in self.pids() if _is_rank(_words(pid))]

    def launchers(self) -> list[int]:
        """Those that only watch over ranks."""
        return [pid for pid in self.pids() if _is_launcher(_words(pid))]

    def kill(self) -> None:
        """End all of it."""
        for pid in self.pids():
            send(pid, signal.SIGKILL)
        self.process.wait()

    def gone(self, seconds: float) -> bool:
        """Whether all of it ends by itself within a time."""
        return wait_until(lambda: self.process.poll() is not None and not self.pids(), seconds)

    def wait(self, seconds: float = 120) -> Ended:
        """Until it ends; one that does not is killed, and has status 124."""
        try:
            status = self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            status = 124
        return Ended(status, self.output())

    def output(self) -> str:
        """What it printed until now."""
        text = self.log.read_text(errors="replace") if self.log.exists() else ""
        return " ".join(text.replace("│", " ").split())


@dataclass(frozen=True)
class Subject:
    """A checkout of clipfast.

    Attributes:
        repository: its root.
        python: the interpreter that it is installed in.
        threads: that torch computes with.
    """

    repository: Path = field(default_factory=lambda: Path(__file__).resolve().parents[2])
    python: Path = field(default_factory=lambda: Path(sys.executable))
    threads: int = 1

    def command(self, *options: str, launcher: str = "", ranks: int = 2) -> list[str]:
        """Plain Python, or ``ranks`` processes under a launcher."""
        script = [str(RECIPE), *options]
        if launcher == "deepspeed":
            arguments = ["--num_gpus", str(ranks), "--master_port", str(free_port())]
            return [str(self.python), "-m", "deepspeed.launcher.runner", *arguments, *script]
        if launcher == "torchrun":
            arguments = ["--nproc_per_node", str(ranks), "--master_port", str(free_port())]
            return [str(self.python), "-m", "torch.distributed.run", *arguments, *script]
        return [str(self.python), *script]

    def environment(self, mark: str = "") -> dict[str, str]:
        """Without what a launcher around this program would have set."""
        kept = {
            k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")
        }
        scripts = str(self.python.parent)
        return {
            **kept,
            "PATH": f"{scripts}{os.pathsep}{kept.get('PATH', '')}",
            "OMP_NUM_THREADS": str(self.threads),
            # Chosen by a race otherwise, which two runs that are compared may see end differently.
            "CLIPFAST_CPU_PRODUCTS": "mkl",
            _MARK: mark,
        }

    def start(
        self,
        folder: Path,
        *options: str,
        launcher: str = "",
        command: Sequence[str] = (),
        prefix: Sequence[str] = (),
    ) -> Started:
        """Start the cheapest run, or another command.

        Args:
            folder: of runs (``--logging.dir``); what is printed goes to a file beside it.
            options: further ones.
            launcher: deepspeed, torchrun or none.
            command: to start instead.
            prefix: what to start it through, such as setpriv.
        """
        mark = uuid.uuid4().hex
        log = folder.parent / f"{folder.name}-{mark}.log"
        line = list(command) or self.command(
            "--logging.dir", str(folder), *options, launcher=launcher
        )
        with open(log, "w") as file:
            process = subprocess.Popen(
                [*prefix, *line],
                cwd=self.repository,
                env=self.environment(mark),
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        return Started(process, log, mark)

    def run(self, folder: Path, *options: str, launcher: str = "", seconds: float = 120) -> Ended:
        """The same, to its end."""
        return self.start(folder, *options, launcher=launcher).wait(seconds)


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def send(pid: int, number: int) -> bool:
    """Send a signal; False where the process was gone by then."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return False
    return True


def wait_until(condition: Callable[[], bool], seconds: float, every: float = 0.1) -> bool:
    """Look again and again; whether it came true in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(every)
    return True


def _all_pids() -> list[int]:
    return [int(entry) for entry in os.listdir("/proc") if entry.isdigit()]


def _read(pid: int, name: str) -> bytes:
    try:
        return Path(f"/proc/{pid}/{name}").read_bytes()
    except OSError:
        return b""


def _words(pid: int) -> list[str]:
    return _read(pid, "cmdline").decode(errors="replace").split("\0")


def _is_launcher(words: list[str]) -> bool:
    module = words[words.index("-m") + 1] if "-m" in words[:-1] else ""
    return module.startswith(_LAUNCHER_MODULES)


def _is_rank(words: list[str]) -> bool:
    return str(RECIPE) in words and not _is_launcher(words)
