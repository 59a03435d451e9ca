"""Long runs stay flat: memory, threads and open files after hundreds of evaluations and epochs."""

import os
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.campaigns.program import Setting, main
from tests.campaigns.subject import RECIPE, Started
from tests.campaigns.table import Table
from tests.campaigns.traces import last_step

_WORKER = Path(__file__).with_name("evaluate_worker.py")
_MEGABYTES = 20
_EVALUATIONS = 400
_EPOCHS = 10
_STEPS_OF_AN_EPOCH = 59


@dataclass(frozen=True)
class Sample:
    """A process at one moment.

    Attributes:
        megabytes: of resident memory.
        threads: their number.
        files: open descriptors.
    """

    megabytes: float
    threads: int
    files: int

    @classmethod
    def of(cls, pid: int) -> "Sample":
        """Look at a process."""
        status = dict(
            line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines()
        )
        kilobytes = int(status["VmRSS"].split()[0])
        files = len(os.listdir(f"/proc/{pid}/fd"))
        return cls(kilobytes / 1024, int(status["Threads"]), files)


def campaign(setting: Setting) -> Table:
    """Evaluate ``setting.count`` times, train an epoch for each 40 of them."""
    table = Table("soak")
    evaluations, epochs = setting.count, max(3, setting.count * _EPOCHS // _EVALUATIONS)
    steps = epochs * _STEPS_OF_AN_EPOCH
    never = ["--checkpoint.every-steps", "0"]
    each = ["--data.eval", "sample/noto", "--eval.every", "1", *never]
    _evaluate(table, setting, evaluations)
    _train(table, setting, f"{evaluations} steps and evaluations", evaluations, each)
    _train(table, setting, f"{epochs} epochs of training", steps, never)
    often = ["--checkpoint.every-steps", "10"]
    _train(table, setting, f"{steps // 10} checkpoints", steps, often)
    return table


def _evaluate(table: Table, setting: Setting, count: int) -> None:
    """Evaluations alone: nothing between them makes Python look for cycles."""
    folder = setting.folder / "evaluations"
    options = ["--logging.dir", str(folder), "--data.eval", "sample/noto"]
    command = [str(setting.subject.python), str(_WORKER), str(RECIPE), str(count), *options]
    started = setting.subject.start(folder, command=command)
    case = f"{count} evaluations"
    _note(table, case, started, lambda: len(re.findall(r"evaluation \d", started.output())), count)


def _train(table: Table, setting: Setting, case: str, steps: int, options: list[str]) -> None:
    folder = setting.folder / case.replace(" ", "-")
    started = setting.subject.start(folder, "--max-steps", str(steps), *options)
    _note(table, case, started, lambda: last_step(folder / "run"), steps)


def _note(
    table: Table, case: str, started: Started, progress: Callable[[], int], length: int
) -> None:
    samples = _watch(started, progress, length)
    ended = started.wait()
    ok, outcome = judge(samples)
    if ended.status != 0:
        ok, outcome = False, f"status {ended.status}: {ended.output[-200:]}"
    table.add(case, f"{len(samples)} looks at it", ok, outcome)
    print(f"{case}: {outcome}", flush=True)


def judge(samples: Sequence[Sample]) -> tuple[bool, str]:
    """Whether the end of a run is as its beginning, but for the first tenth.

    Args:
        samples: of a run, at even distances.

    Returns:
        Whether it is flat, and by how much it grew.
    """
    if len(samples) < 10:
        return False, f"only {len(samples)} samples: the run was too short"
    tenth = len(samples) // 10
    warm, late = samples[tenth : 3 * tenth], samples[-2 * tenth :]
    # The least of each: memory goes up and down within a step.
    growth = min(s.megabytes for s in late) - min(s.megabytes for s in warm)
    threads = late[-1].threads - warm[0].threads
    files = late[-1].files - warm[0].files
    outcome = f"{growth:+.1f} MB, {threads:+d} threads, {files:+d} files"
    return growth < _MEGABYTES and threads <= 1 and files <= 2, outcome


def _watch(started: Started, progress: Callable[[], int], length: int) -> list[Sample]:
    """A sample for every number of ``progress`` that is seen."""
    samples: dict[int, Sample] = {}
    while started.process.poll() is None:
        number = progress()
        if 0 < number < length and number not in samples:
            try:
                samples[number] = Sample.of(started.process.pid)
            except (OSError, KeyError):
                break
        time.sleep(0.05)
    return [samples[number] for number in sorted(samples)]


if __name__ == "__main__":
    main({"soak": (campaign, _EVALUATIONS)}, __doc__)
