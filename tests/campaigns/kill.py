"""SIGKILL at any moment: resumed runs end with the bits of one that nobody disturbed.

A chain is one run, killed and resumed many times and then left to end. Its final weights and its
metrics must be those of an uninterrupted run, and no process may outlive its parent.
"""

import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from tests.campaigns.program import Setting, main
from tests.campaigns.subject import Started, send, wait_until
from tests.campaigns.table import Table
from tests.campaigns.traces import checkpoints, difference, is_saving, last_step, unfinished

# Steps that a life may take before it is killed.
_STEPS = 5
_SURVIVAL_SECONDS = 20.0
_START_SECONDS = 150.0
# Of 100 kills; a chain stays long enough to pay for its end.
_SHARES = {
    ("", "run"): 60,
    ("", "export"): 6,
    ("deepspeed", "one rank"): 10,
    ("deepspeed", "launcher"): 5,
    ("deepspeed", "export"): 2,
    ("torchrun", "one rank"): 10,
    ("torchrun", "launcher"): 5,
    ("torchrun", "export"): 2,
}
_LONGEST_CHAIN = 33


@dataclass(frozen=True)
class Kill:
    """One attack.

    Attributes:
        victim: run, one rank, launcher, or export: all of the run while it ends.
        moment: start, step, saving or export.
        steps: to wait for, beyond those that were taken before.
        delay: seconds after the moment.
    """

    victim: str
    moment: str
    steps: int
    delay: float


class Chain:
    """One run and its kills.

    Args:
        setting: of the campaign.
        name: of its folder.
        launcher: deepspeed, torchrun or none.
        kills: in order, those during the export last.
    """

    def __init__(self, setting: Setting, name: str, launcher: str, kills: list[Kill]) -> None:
        self.subject = setting.subject
        self.folder = setting.folder / name
        self.run = self.folder / "run"
        self.launcher = launcher
        self.kills = kills
        self.length = 2 * ((_STEPS + 2) * len(kills) // 2) + 8
        self.options = ["--max-steps", str(self.length)]

    def attack(self) -> list[tuple[Kill, bool, str]]:
        """Kill and resume, then compare; each kill, whether it was withstood, and what it hit."""
        results = [(kill, *self._live(kill)) for kill in self.kills]
        self._start().wait(300)
        reference = self.folder / "undisturbed"
        ended = self.subject.run(reference, *self.options, launcher=self.launcher, seconds=300)
        assert ended.status == 0, ended.output
        if differing := difference(self.run, reference / "run"):
            return [(kill, False, differing) for kill, _, _ in results]
        return results

    def _start(self) -> Started:
        return self.subject.start(
            self.folder, *self.options, "--resume", "latest", launcher=self.launcher
        )

    def _live(self, kill: Kill) -> tuple[bool, str]:
        for _ in range(3):
            before = last_step(self.run)
            started = self._start()
            try:
                if self._come(kill, started, before):
                    return self._kill(kill, started)
                ended = started.process.poll()
                if ended != 0:
                    return False, f"resumed with status {ended}: {started.output()[-300:]}"
            finally:
                started.kill()
        return False, "the run was over before its kill"

    def _come(self, kill: Kill, started: Started, before: int) -> bool:
        """Wait for the moment; False where the run ended before it."""
        wanted = min(before + kill.steps, self.length - 1)
        moments: dict[str, Callable[[], bool]] = {
            "start": lambda: True,
            "step": lambda: last_step(self.run) >= wanted,
            "saving": lambda: last_step(self.run) >= wanted and is_saving(self.run),
            "export": lambda: self._has_last_checkpoint(),
        }
        condition = moments[kill.moment]
        wait_until(
            lambda: condition() or started.process.poll() is not None, _START_SECONDS, every=0.005
        )
        time.sleep(kill.delay)
        return started.process.poll() is None

    def _has_last_checkpoint(self) -> bool:
        # A run that has it writes no further one: nothing else tells when its export begins.
        finished = checkpoints(self.run)
        return bool(finished) and finished[-1].name == f"step{self.length:08d}"

    def _kill(self, kill: Kill, started: Started) -> tuple[bool, str]:
        ranks, launchers = started.ranks(), started.launchers()
        groups = {"one rank": ranks[-1:], "launcher": launchers[:1]}
        # A rank may not be there yet; then what was started is hit.
        victims = groups.get(kill.victim) or [started.process.pid]
        hit = ", ".join(sorted(set(unfinished(self.run)))) or f"after step {last_step(self.run)}"
        for pid in victims:
            send(pid, signal.SIGKILL)
        if not started.gone(_SURVIVAL_SECONDS):
            survivors = len(started.pids())
            return False, f"{survivors} processes outlived it by {_SURVIVAL_SECONDS:.0f} s"
        if kill.victim == "launcher" and last_step(self.run) >= self.length:
            return False, "the ranks went on to the end without their launcher"
        return True, hit


def campaign(setting: Setting) -> Table:
    """Kill runs ``setting.count`` times."""
    chains = _chains(setting)
    table = Table("kill")
    with ThreadPoolExecutor(setting.jobs) as pool:
        for chain, results in zip(chains, pool.map(Chain.attack, chains), strict=True):
            for number, (kill, ok, outcome) in enumerate(results):
                case = f"{chain.launcher or 'single process'}, {kill.victim}"
                attack = f"kill {number + 1} of {chain.run}, at {kill.moment} + {kill.delay:.3f} s"
                table.add(case, attack, ok, outcome)
    return table


def _chains(setting: Setting) -> list[Chain]:
    kills: dict[str, list[Kill]] = {"": [], "deepspeed": [], "torchrun": []}
    total = sum(_SHARES.values())
    done, owed = 0, 0.0
    for (launcher, victim), share in _SHARES.items():
        owed += share * setting.count / total
        number = round(owed) - done
        done += number
        kills[launcher] += [_draw(setting, victim) for _ in range(number)]
    chains = []
    for launcher, drawn in kills.items():
        ends = [kill for kill in drawn if kill.victim == "export"]
        others = [kill for kill in drawn if kill.victim != "export"]
        setting.random.shuffle(others)
        parts = max(1, -(-len(drawn) // _LONGEST_CHAIN))
        for part in range(parts if drawn else 0):
            chosen = others[part::parts] + ends[part::parts]
            chains.append(Chain(setting, f"{launcher or 'single'}-{part}", launcher, chosen))
    return chains


def _draw(setting: Setting, victim: str) -> Kill:
    chance = setting.random
    if victim == "export":
        return Kill(victim, "export", 0, chance.uniform(0, 0.06))
    moments = (
        ["step", "saving"] if victim != "run" else ["start", "step", "step", "saving", "saving"]
    )
    moment = chance.choice(moments)
    delay = chance.uniform(0, 4.0) if moment == "start" else chance.uniform(0, 0.04)
    return Kill(victim, moment, chance.randint(1, _STEPS), delay)


if __name__ == "__main__":
    main({"kill": (campaign, 100)}, __doc__)
