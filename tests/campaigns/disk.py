"""Disks that fill up, turn read-only or go away under a run.

The run names the path, and the free space where that is the reason; it goes on where it can, and
saves again once there is room. It needs root, to mount small disks.
"""

import re
import shutil
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.campaigns.program import Setting, main
from tests.campaigns.small_disk import SmallDisk, can_mount
from tests.campaigns.subject import Started, send, wait_until
from tests.campaigns.table import Table
from tests.campaigns.traces import difference, last_step

_STEPS = 120
_SAVES = ("--checkpoint.every-steps", "10", "--checkpoint.keep", "1")
_NO_SAVES = ("--checkpoint.every-steps", "0")
# Root without the rights that let it pass over file modes.
_PLAIN_USER = ("setpriv", "--bounding-set", "-dac_override,-dac_read_search")
_FAILED = (1, 2, 75)
# What a run says that waits for room, or for the folder to come back.
_WAITS = "trying again"
_SIZE = r"[\d.,]+ ?(B|kB|KB|MB|GB|bytes)"
_SPACE = rf"{_SIZE}[^.]{{0,40}}free|free[^.]{{0,40}}?{_SIZE}"


@dataclass(frozen=True)
class Fault:
    """What happens to a disk under a run.

    Attributes:
        name: for the table.
        happens: does it, given the disk and the run's folder.
        ends: undoes it; None where it stays.
        statuses: that the run may end with.
        step: after which it happens; 0 for before the run starts.
        options: of the run.
        space: the free space is to be named.
        metrics: rows are whole at the end; else their loss is to be told.
        silent: nothing is lost by it, so that nothing need be told.
        stops: it is told to stop when it says that it will try again, since it would for minutes.
        launcher: torchrun or none.
        prefix: what to start it through.
    """

    name: str
    happens: Callable[[SmallDisk, Path], object]
    ends: Callable[[SmallDisk, Path], object] | None = None
    statuses: tuple[int, ...] = (0,)
    step: int = 15
    options: Sequence[str] = _SAVES
    space: bool = False
    metrics: bool = True
    silent: bool = False
    stops: bool = False
    launcher: str = ""
    prefix: Sequence[str] = ()


def _fill(disk: SmallDisk, run: Path) -> None:
    disk.fill()


def _fill_names(disk: SmallDisk, run: Path) -> None:
    disk.fill_names()


def _empty(disk: SmallDisk, run: Path) -> None:
    disk.empty()


def _cover(name: str) -> Callable[[SmallDisk, Path], None]:
    return lambda disk, run: disk.cover(run / name)


def _uncover(name: str) -> Callable[[SmallDisk, Path], None]:
    return lambda disk, run: disk.uncover(run / name)


def _delete(name: str) -> Callable[[SmallDisk, Path], None]:
    def delete(disk: SmallDisk, run: Path) -> None:
        path = run / name
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink()

    return delete


def _file_instead(name: str) -> Callable[[SmallDisk, Path], None]:
    def replace(disk: SmallDisk, run: Path) -> None:
        path = run / name
        if path.is_dir():
            # Renamed first: a save may be writing into it.
            shutil.rmtree(path.rename(path.with_name(f"{path.name}-gone")), ignore_errors=True)
        path.parent.mkdir(exist_ok=True)
        path.write_text("a file")

    return replace


def _file_away(name: str) -> Callable[[SmallDisk, Path], None]:
    return lambda disk, run: (run / name).unlink()


def _mode(name: str, mode: int) -> Callable[[SmallDisk, Path], None]:
    return lambda disk, run: (run / name).chmod(mode)


FAULTS = [
    Fault("full at the first save, then room", _fill, _empty, step=4, space=True),
    Fault("full at a later save, then room", _fill, _empty, space=True),
    Fault("full under two ranks, then room", _fill, _empty, space=True, launcher="torchrun"),
    Fault("full while metrics are written", _fill, _empty, options=_NO_SAVES, space=True),
    Fault(
        "full under TensorBoard, then room",
        *(_fill, _empty),
        options=(*_SAVES, "--logging.tensorboard"),
        space=True,
    ),
    Fault("full until the export", _fill, _empty, options=_NO_SAVES, space=True, metrics=False),
    Fault("full for good", _fill, statuses=_FAILED, space=True, metrics=False, stops=True),
    Fault("full before the start", _fill, statuses=(1, 2), step=0, space=True, metrics=False),
    Fault("no further file, then room", _fill_names, _empty),
    Fault("checkpoints read-only, for a time", _cover("checkpoints"), _uncover("checkpoints")),
    Fault("checkpoints read-only, for good", _cover("checkpoints"), statuses=_FAILED, stops=True),
    Fault("run's folder read-only, for a time", _cover(""), _uncover("")),
    Fault("run's folder deleted", _delete(""), metrics=False, silent=True),
    Fault("checkpoints deleted", _delete("checkpoints"), silent=True),
    Fault("metrics deleted", _delete("metrics.jsonl"), metrics=False, silent=True),
    Fault(
        "a file instead of checkpoints, for a time",
        _file_instead("checkpoints"),
        _file_away("checkpoints"),
    ),
    Fault(
        "a file instead of checkpoints", _file_instead("checkpoints"), statuses=_FAILED, stops=True
    ),
    Fault("a file instead of the run's folder", _file_instead(""), statuses=(2,), step=0),
    Fault(
        "no permission, for a time",
        *(_mode("checkpoints", 0o555), _mode("checkpoints", 0o755)),
        prefix=_PLAIN_USER,
    ),
    Fault(
        "no permission in the run's folder",
        _mode("", 0o555),
        statuses=_FAILED,
        prefix=_PLAIN_USER,
        metrics=False,
        stops=True,
    ),
]


def campaign(setting: Setting) -> Table:
    """Let ``setting.count`` faults happen."""
    table = Table("disk")
    if not can_mount(setting.folder):
        print("disk: nothing was tried, since small disks cannot be mounted here (needs root)")
        return table
    for number in range(setting.count):
        fault = FAULTS[number % len(FAULTS)]
        with SmallDisk(setting.folder / f"disk-{number}") as disk:
            outcome = _attack(setting, fault, disk)
        table.add("disk", fault.name, not outcome, outcome or "named, and gone on where it could")
    return table


def _attack(setting: Setting, fault: Fault, disk: SmallDisk) -> str:
    runs = disk.path / "runs"
    run = runs / "run"
    runs.mkdir()
    if fault.step == 0:
        fault.happens(disk, run)
    options = ["--max-steps", str(_STEPS), *fault.options]
    # What is printed goes elsewhere: it must outlive the disk.
    log = setting.folder / disk.path.name
    command = setting.subject.command("--logging.dir", str(runs), *options, launcher=fault.launcher)
    started = setting.subject.start(log.with_suffix(".log"), command=command, prefix=fault.prefix)
    try:
        if fault.step:
            _happen(fault, started, disk, run)
        if fault.stops:
            wait_until(lambda: _WAITS in started.output() or _over(started), 60)
            send(started.process.pid, signal.SIGTERM)
        ended = started.wait(150)
    finally:
        started.kill()
    if ended.status not in fault.statuses:
        return f"status {ended.status}: {ended.output[-300:]}"
    # The one of TensorBoard's own thread comes with a line that says what it means.
    told = "TensorBoard is no longer written" in ended.output
    if ended.status == 0 and "Traceback" in ended.output and not told:
        return f"a traceback: {ended.output[ended.output.index('Traceback') :][:300]}"
    if not fault.silent and str(disk.path) not in _complaints(ended.output):
        return f"the path is not named: {ended.output[-300:]}"
    if fault.space and not re.search(_SPACE, ended.output):
        return f"the free space is not named: {ended.output[-300:]}"
    return _remains(setting, fault, run, ended.status, ended.output)


def _happen(fault: Fault, started: Started, disk: SmallDisk, run: Path) -> None:
    wait_until(lambda: last_step(run) >= fault.step or _over(started), 60, every=0.01)
    fault.happens(disk, run)
    if fault.ends is None:
        return
    until = _WAITS if fault.name.endswith("until the export") else str(disk.path)
    # Long enough for a save to fail: it comes every ten steps.
    seconds = 60 if until == _WAITS else 4
    wait_until(lambda: until in _complaints(started.output()) or _over(started), seconds)
    time.sleep(0.3)
    fault.ends(disk, run)


def _remains(setting: Setting, fault: Fault, run: Path, status: int, output: str) -> str:
    if status != 0:
        return ""
    reference = setting.folder / f"alone{fault.launcher}"
    if not reference.exists():
        alone = ["--max-steps", str(_STEPS), *_NO_SAVES]
        ended = setting.subject.run(reference, *alone, launcher=fault.launcher)
        assert ended.status == 0, ended.output
    outcome = difference(run, reference / "run")
    if outcome.startswith("metrics") and not fault.metrics:
        said = re.search(r"(metrics|rows)[^.]*(lost|missing|not written|deleted|gone)", output)
        return "" if said else f"{outcome}, which is not told: {output[-300:]}"
    return outcome


def _over(started: Started) -> bool:
    return started.process.poll() is not None


def _complaints(output: str) -> str:
    """Without the lines that name the run's folder in any case."""
    for harmless in (r"writing to \S+", r"weights: \S+", r"it is now \S+"):
        output = re.sub(harmless, "", output)
    return output


if __name__ == "__main__":
    main({"disk": (campaign, len(FAULTS))}, __doc__)
