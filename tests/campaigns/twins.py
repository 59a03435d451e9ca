"""Two runs of one name: the second is refused and says who holds it, the first never notices.

The second starts while the first trains, while it is stopped (SIGSTOP: a process that does not beat
is still alive), or at the same moment. Whichever wins must end as if it had been alone.
"""

import re
import signal
import socket
from collections.abc import Callable
from pathlib import Path

from tests.campaigns.program import Setting, main
from tests.campaigns.subject import Ended, Started, send, wait_until
from tests.campaigns.table import Table
from tests.campaigns.traces import difference, last_step, losses

_STEPS = 240
_SEED = ["--seed", "1"]
_RESUME = ["--resume", "latest"]


class Twins:
    """Runs of one name.

    Args:
        setting: of the campaign.
    """

    def __init__(self, setting: Setting) -> None:
        self._setting = setting
        self._options = ["--max-steps", str(_STEPS), "--checkpoint.every-steps", "10"]

    def reference(self, *options: str) -> Path:
        """A run that nobody disturbs, made once."""
        folder = self._setting.folder / f"alone{'-'.join(options)}"
        if not folder.exists():
            ended = self._setting.subject.run(folder, *self._options, *options)
            assert ended.status == 0, ended.output
        return folder / "run"

    def start(self, folder: Path, *options: str, launcher: str = "") -> Started:
        """One of the two."""
        return self._setting.subject.start(folder, *self._options, *options, launcher=launcher)

    def while_it_trains(self, folder: Path, *second: str, launcher: str = "") -> str:
        """The second comes while the first trains; what is wrong, or nothing."""
        first = self.start(folder)
        return self._meet(folder, first, second, launcher, pause=False)

    def while_it_is_stopped(self, folder: Path, *second: str, launcher: str = "") -> str:
        """The second comes while the first is stopped by a signal."""
        first = self.start(folder)
        return self._meet(folder, first, second, launcher, pause=True)

    def at_once(self, folder: Path, *second: str, launcher: str = "") -> str:
        """Both start at the same moment; either may win."""
        options: list[tuple[str, ...]] = [(), second]
        started = [self.start(folder, *given) for given in options]
        ended = [one.wait() for one in started]
        statuses = [one.status for one in ended]
        if sorted(statuses) != [0, 2]:
            return f"both ended with {statuses}: {ended[1].output[-200:]}"
        winner = statuses.index(0)
        outcome = _refusal(ended[1 - winner], folder, started[winner].process.pid)
        return outcome or difference(folder / "run", self.reference(*_seed_of(options[winner])))

    def after_a_kill(self, folder: Path, *second: str, launcher: str = "") -> str:
        """A dead holder holds nothing: the second takes its place at once, and goes on or anew."""
        first = self.start(folder)
        wait_until(lambda: last_step(folder / "run") >= 25, 60)
        first.kill()
        ended = self.start(folder, *second, launcher=launcher).wait()
        if ended.status != 0:
            return f"status {ended.status}: {ended.output[-200:]}"
        return difference(folder / "run", self.reference(*_seed_of(second)))

    def _meet(
        self, folder: Path, first: Started, second: tuple[str, ...], launcher: str, pause: bool
    ) -> str:
        run = folder / "run"
        try:
            if not wait_until(lambda: last_step(run) >= 15, 60, every=0.02):
                return f"the first does not train: {first.output()[-200:]}"
            if pause:
                send(first.process.pid, signal.SIGSTOP)
            other = self.start(folder, *second, launcher=launcher)
            # It must outlive the other, which takes seconds to start.
            wait_until(
                lambda: other.process.poll() is not None or last_step(run) >= _STEPS - 60, 90
            )
            send(first.process.pid, signal.SIGSTOP)
            ended = other.wait(60)
            other.kill()
            lived = first.process.poll() is None
            send(first.process.pid, signal.SIGCONT)
            own = first.wait()
        finally:
            first.kill()
        if not lived:
            return "the first was over before the second: no attack"
        if own.status != 0:
            return f"the first ended with status {own.status}: {own.output[-200:]}"
        if launcher and ended.status != 0:
            # torchrun ends with 1 whatever its ranks end with, and prints their code.
            told = re.search(r"exitcode *: *(\d+)", ended.output)
            ended = Ended(int(told[1]) if told else ended.status, ended.output)
        outcome = _refusal(ended, folder, first.process.pid)
        return outcome or difference(run, self.reference())


def campaign(setting: Setting) -> Table:
    """Start ``setting.count`` pairs."""
    twins, table = Twins(setting), Table("twins")
    ways: list[tuple[str, Callable[..., str], list[str], str]] = [
        ("while it is stopped, new", twins.while_it_is_stopped, _SEED, ""),
        ("while it is stopped, resumed", twins.while_it_is_stopped, _RESUME, ""),
        ("at once, new", twins.at_once, _SEED, ""),
        ("while it trains, new", twins.while_it_trains, [], ""),
        ("at once, resumed", twins.at_once, _RESUME, ""),
        ("while it trains, resumed", twins.while_it_trains, _RESUME, ""),
        ("while it is stopped, two ranks", twins.while_it_is_stopped, _RESUME, "torchrun"),
        ("after a kill, new", twins.after_a_kill, _SEED, ""),
        ("after a kill, resumed", twins.after_a_kill, _RESUME, ""),
        ("while it is stopped, another seed", twins.while_it_is_stopped, [*_SEED, *_RESUME], ""),
    ]
    for number in range(setting.count):
        case, attack, second, launcher = ways[number % len(ways)]
        folder = setting.folder / f"pair-{number}"
        outcome = attack(folder, *second, launcher=launcher)
        table.add(case, f"pair {number}", not outcome, outcome or "apart")
    return table


def _seed_of(options: tuple[str, ...]) -> list[str]:
    return _SEED if "--seed" in options else []


def _refusal(ended: Ended, folder: Path, holder: int) -> str:
    """What is wrong with how the second was turned away, or nothing."""
    if ended.status == 0:
        moved = sorted(path.name for path in folder.iterdir() if path.is_dir())
        rows = len(losses(folder / "run"))
        return f"both ran: {', '.join(moved)}, {rows} rows in the name's metrics"
    if ended.status != 2:
        return f"the second ended with status {ended.status}: {ended.output[-200:]}"
    missing = [w for w in (str(holder), socket.gethostname()) if w not in ended.output]
    return f"the refusal does not name {missing[0]}: {ended.output[-200:]}" if missing else ""


if __name__ == "__main__":
    main({"twins": (campaign, 20)}, __doc__)
