"""One rank dies, hangs or disagrees: the others end by name within a minute, and nothing is left.

Runs of two ranks, under each launcher and under none. The table says how many seconds passed from
the fault to the end of the last process, what was said, and what was left. The first attack is one
of its own kind: torchrun starts the ranks again, and the run must end with the bits of one that
nobody disturbed.
"""

import re
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tests.campaigns.program import Setting, main
from tests.campaigns.subject import RECIPE, Subject, free_port
from tests.campaigns.table import Table
from tests.campaigns.traces import difference

_RECIPE = RECIPE.with_name("faulty_recipe.py")
# What a person is promised.
_WITHIN_SECONDS = 60.0
_LONGEST_RUN = 240.0
_PATIENCE = 6
_SHORT = ("--max-steps", "24", "--checkpoint.every-steps", "4")
_SHARED = Path("/dev/shm")


@dataclass(frozen=True)
class Attack:
    """One fault.

    Attributes:
        kind: restart, dies, hangs, disagrees or signal.
        launcher: torchrun, deepspeed, or none: two processes with the variables of a launcher.
        fault: for the recipe, see ``faulty_recipe.Fault``.
        said: what must be printed, as a pattern.
        options: of the run.
    """

    kind: str
    launcher: str
    fault: str
    said: str
    options: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.launcher or 'no launcher'}: {self.fault}"


_EVALUATES = (
    *("--data.eval", "sample/twemoji", "--data.eval-limit", "1900", "--data.eval-batch-size", "4"),
    *("--eval.every", "10"),
)
_KILLED = r"error: rank {} on \S+ was killed by {}"
_HANGS = r"HANG: rank {} on \S+ hangs after step \d+, in {}, for \d+ s, and 1 rank waits"
_DIFFERS = r"ranks disagree; rank 0 is on \S+: rank 1 on \S+ has {}"
ATTACKS = (
    Attack("restart", "torchrun", "rank 1, step 9, data, kill", _KILLED.format(1, "SIGKILL")),
    Attack("dies", "torchrun", "rank 1, step 20, forward, kill", _KILLED.format(1, "SIGKILL")),
    Attack("dies", "deepspeed", "rank 1, step 20, data, kill", _KILLED.format(1, "SIGKILL")),
    Attack("dies", "", "rank 1, step 20, data, kill", _KILLED.format(1, "SIGKILL")),
    Attack("dies", "", "rank 0, step 20, data, kill", _KILLED.format(0, "SIGKILL")),
    Attack("dies", "torchrun", "rank 0, step 20, data, kill", _KILLED.format(0, "SIGKILL")),
    Attack("dies", "", "rank 1, step 0, start, kill", _KILLED.format(1, "SIGKILL")),
    Attack("dies", "deepspeed", "rank 0, step 0, start, kill", _KILLED.format(0, "SIGKILL")),
    Attack("dies", "", "rank 1, step 20, data, fault", _KILLED.format(1, "SIGSEGV")),
    Attack("dies", "", "rank 0, step 20, forward, exit", r"rank 0 on \S+ ended with status 7"),
    Attack("dies", "", "rank 1, step 20, data, raise", r"rank 1 on \S+ failed first"),
    Attack(
        *("dies", "", "rank 1, step 30, evaluation, kill"), _KILLED.format(1, "SIGKILL"), _EVALUATES
    ),
    Attack("hangs", "torchrun", "rank 1, step 20, data, sleep", _HANGS.format(1, "data")),
    Attack("hangs", "deepspeed", "rank 0, step 20, forward, sleep", _HANGS.format(0, "forward")),
    Attack("hangs", "", "rank 1, step 20, data, stop", _HANGS.format(1, "data")),
    Attack("hangs", "torchrun", "rank 0, step 20, data, stop", _HANGS.format(0, "data")),
    Attack("hangs", "", "rank 1, step 20, forward, hold", _HANGS.format(1, "forward")),
    Attack(
        "disagrees", "torchrun", "rank 1, step 0, start, batch", _DIFFERS.format("--batch-size")
    ),
    Attack(
        *("disagrees", "", "rank 1, step 0, start, weights"), _DIFFERS.format("starting weights")
    ),
    Attack("disagrees", "deepspeed", "rank 1, step 0, start, shards", _DIFFERS.format("data: sha")),
    Attack("signal", "", "rank 1, step 20, data, term", r"Interrupted by"),
    Attack("signal", "", "rank 1, step 60, evaluation, term", r"Interrupted by", _EVALUATES),
    Attack("signal", "", "rank 1, step 0, start, term", r"rank 1 on \S+ was interrupted"),
)


@dataclass(frozen=True)
class Outcome:
    """What came of an attack.

    Attributes:
        ok: all that is promised.
        seconds: from the fault to the end of the last process.
        status: of the launcher, or of the two processes.
        said: the words that name the fault.
        left: what was still there afterwards.
    """

    ok: bool
    seconds: float
    status: int
    said: str
    left: str

    def __str__(self) -> str:
        left = self.left or "nothing left"
        return f"{self.seconds:.1f} s, status {self.status}: {self.said or 'not named'}; {left}"


def attack(setting: Setting, number: int, wanted: Attack) -> Outcome:
    """Start a run, let its fault happen, and look at what comes of it.

    Args:
        setting: of the campaign.
        number: of the attack, for its folder.
        wanted: what happens.
    """
    folder = setting.folder / f"{number:03d}"
    folder.mkdir(parents=True, exist_ok=True)
    port, happened = free_port(), folder / "fault-at"
    goes_on = [*_SHORT, "--resume", "latest"]
    endless = ["--max-steps", "100000", "--checkpoint.every-steps", "0"]
    options = [
        *("--logging.dir", str(folder), "--watchdog-seconds", str(_PATIENCE)),
        *(goes_on if wanted.kind == "restart" else endless),
        *wanted.options,
    ]
    started = setting.subject.start(
        folder,
        command=_command(setting.subject, wanted, port, options),
        prefix=["env", f"CLIPFAST_FAULT={wanted.fault}", f"CLIPFAST_FAULT_AT={happened}"],
    )
    began = time.monotonic()
    try:
        over = started.gone(_LONGEST_RUN)
        ended = time.monotonic()
        survivors = started.pids()
    finally:
        started.kill()
    at = float(happened.read_text()) if happened.exists() else began
    said = re.search(wanted.said, started.output())
    left = ", ".join(_left(port, survivors))
    status = started.process.returncode
    words = started.output()[said.start() :][:90] if said else ""
    if wanted.kind == "restart":
        left = ", ".join(filter(None, (left, _compare(setting, folder, port))))
        ok = over and status == 0
    else:
        # A start of processes that differ takes as long as a start takes.
        in_time = wanted.kind == "disagrees" or ended - at < _WITHIN_SECONDS
        ok = over and status != 0 and in_time
    if wanted.kind == "signal":
        ok = ok and status == 75
    return Outcome(bool(ok and said and not left), ended - at, status, words, left)


def _command(subject: Subject, wanted: Attack, port: int, options: list[str]) -> list[str]:
    python, script = str(subject.python), [str(_RECIPE), *options]
    if wanted.launcher == "deepspeed":
        words = ["-m", "deepspeed.launcher.runner", "--num_gpus", "2", "--master_port", str(port)]
        return [python, *words, *script]
    if wanted.launcher == "torchrun":
        restarts = "3" if wanted.kind == "restart" else "0"
        words = ["--nproc_per_node", "2", "--master_port", str(port), "--max_restarts", restarts]
        return [python, "-m", "torch.distributed.run", *words, *script]
    # The larger status of the two.
    return [
        *(python, "-c", _TWO, str(port)),
        *(python, *script),
    ]


_TWO = """
import os, subprocess, sys
port, words = sys.argv[1], sys.argv[2:]
names = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
names["MASTER_PORT"] = port
ranks = [
    subprocess.Popen(words, env={**os.environ, **names, "RANK": rank, "LOCAL_RANK": rank})
    for rank in "01"
]
codes = [rank.wait() for rank in ranks]
sys.exit(max(code if code >= 0 else 1 for code in codes) if all(codes) else 0)
"""


def _left(port: int, survivors: list[int]) -> list[str]:
    """What a run must not leave: processes, shared memory, a port that is taken."""
    found = [f"{len(survivors)} processes"] if survivors else []
    found += [path.name for path in _SHARED.glob(f"deepspeed_allreduce_buffer_*_{port}_*")]
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("", port))
        except OSError:
            found.append(f"port {port} is taken")
    return found


def _compare(setting: Setting, folder: Path, port: int) -> str:
    """How a run that was started again differs from one that was not; empty where it does not."""
    reference = folder / "undisturbed"
    subject = setting.subject
    undisturbed = Attack("restart", "torchrun", "", "")
    options = ["--logging.dir", str(reference), *_SHORT]
    ended = subject.start(reference, command=_command(subject, undisturbed, port, options)).wait(
        _LONGEST_RUN
    )
    if ended.status != 0:
        return f"the undisturbed run ended with {ended.status}: {ended.output[-300:]}"
    return difference(folder / "run", reference / "run")


def campaign(setting: Setting) -> Table:
    """The first ``setting.count`` of all attacks."""
    chosen = ATTACKS[: setting.count]
    table = Table("ranks")
    lines = ["| attack | fault | seconds | status | said | left |", "|---|---|---:|---:|---|---|"]
    with ThreadPoolExecutor(setting.jobs) as pool:
        outcomes = pool.map(lambda n: attack(setting, n, chosen[n]), range(len(chosen)))
        for wanted, outcome in zip(chosen, outcomes, strict=True):
            table.add(wanted.kind, str(wanted), outcome.ok, str(outcome))
            lines.append(
                f"| {wanted.kind} | {wanted} | {outcome.seconds:.1f} | {outcome.status} | "
                f"{outcome.said} | {outcome.left or 'nothing'} |"
            )
    print("\n".join(lines), flush=True)
    return table


if __name__ == "__main__":
    main({"ranks": (campaign, len(ATTACKS))}, __doc__)
