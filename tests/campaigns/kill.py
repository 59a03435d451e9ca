"""SIGKILL at any moment: resumed runs end with the bits of one that nobody disturbed.

A chain is one run, killed and resumed many times and then left to end. Its final weights and its
metrics must be those of an uninterrupted run that saves while it waits, and no process may outlive
its parent.
"""

import collections
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from tests.campaigns.program import Setting, main
from tests.campaigns.subject import Started, send, wait_until
from tests.campaigns.table import Table
from tests.campaigns.traces import (
    checkpoints,
    difference,
    has_evaluated,
    is_saving,
    last_step,
    unfinished,
)

# Steps that a life may take before it is killed.
_STEPS = 5
_SURVIVAL_SECONDS = 60.0
_START_SECONDS = 150.0
_EVALUATED = 3
_EVALUATING = (
    *("--data.eval", "sample/noto", "--eval.every", str(_EVALUATED)),
    "--logging.no-tensorboard",
)
_BACKGROUND = ("--checkpoint.background",)
_NEVER = "the run was over before its kill"


@dataclass(frozen=True)
class Kind:
    """A kind of run.

    Attributes:
        name: of its folder.
        launcher: deepspeed, torchrun or none.
        options: further ones.
    """

    name: str
    launcher: str = ""
    options: tuple[str, ...] = ()


_ALONE = Kind("alone")
_ALONE_IN_BACKGROUND = Kind("alone-background", options=(*_BACKGROUND, *_EVALUATING))
_DEEPSPEED = Kind("deepspeed", "deepspeed", _EVALUATING)
_TORCHRUN = Kind("torchrun", "torchrun", _BACKGROUND)
# Of 100 kills: who is killed, and when.
_SHARES = {
    _ALONE: {("run", "start"): 4, ("run", "step"): 8, ("run", "saving"): 13, ("run", "export"): 5},
    _ALONE_IN_BACKGROUND: {
        **{("run", "step"): 4, ("run", "saving"): 16, ("run", "evaluation"): 12},
        ("run", "last evaluation"): 4,
    },
    _DEEPSPEED: {
        **{("one rank", "step"): 3, ("one rank", "saving"): 4, ("one rank", "evaluation"): 4},
        **{("launcher", "step"): 2, ("launcher", "saving"): 2, ("run", "last evaluation"): 2},
    },
    _TORCHRUN: {
        **{("one rank", "step"): 3, ("one rank", "saving"): 7, ("launcher", "step"): 2},
        **{("launcher", "saving"): 3, ("run", "export"): 2},
    },
}
# A chain stays long enough to pay for its end.
_LONGEST_CHAIN = 36
# Longest delay after a moment, seconds; the others' is the last.
_DELAYS = {"start": 4.0, "export": 0.06, "evaluation": 0.05, "last evaluation": 0.3, "": 0.04}
# After these a chain takes no more steps.
_ENDS = ("export", "last evaluation")


@dataclass(frozen=True)
class Kill:
    """One attack.

    Attributes:
        victim: run, one rank, or launcher.
        moment: start, step, saving, evaluation, export or last evaluation.
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
        kind: of the run.
        kills: in order, those at its end last.
    """

    def __init__(self, setting: Setting, name: str, kind: Kind, kills: list[Kill]) -> None:
        self.subject = setting.subject
        self.folder = setting.folder / name
        self.run = self.folder / "run"
        self.kind = kind
        self.kills = kills
        self.length = 2 * ((_STEPS + 2) * len(kills) // 2) + 8
        self.options = ["--max-steps", str(self.length)]

    def attack(self) -> list[tuple[Kill, bool, str]]:
        """Kill and resume, then compare; each kill, whether it was withstood, and what it hit."""
        results = [(kill, *self._live(kill)) for kill in self.kills]
        self._start().wait(300)
        reference = self.folder / "undisturbed"
        ended = self.subject.run(reference, *self.options, launcher=self.kind.launcher, seconds=300)
        assert ended.status == 0, ended.output
        if differing := difference(self.run, reference / "run"):
            return [(kill, False, differing) for kill, _, _ in results]
        return results

    def _start(self) -> Started:
        options = (*self.options, *self.kind.options, "--resume", "latest")
        return self.subject.start(self.folder, *options, launcher=self.kind.launcher)

    def _live(self, kill: Kill) -> tuple[bool, str]:
        for _ in range(3):
            before, began = last_step(self.run), time.time()
            started = self._start()
            try:
                victims = self._victims(kill, started)
                if self._come(kill, started, before, began):
                    return self._kill(kill, started, victims)
                ended = started.process.poll()
                if ended != 0:
                    return False, f"resumed with status {ended}: {started.output()[-300:]}"
            finally:
                started.kill()
        return False, _NEVER

    def _victims(self, kill: Kill, started: Started) -> list[int]:
        """Processes to kill, found before the moment: looking for them takes longer than it."""
        if kill.victim == "run":
            return [started.process.pid]
        found: list[int] = []

        def look() -> bool:
            ranks, launchers = started.ranks(), started.launchers()
            found[:] = ranks[-1:] if kill.victim == "one rank" else launchers[:1]
            return len(ranks) > 1 or started.process.poll() is not None

        wait_until(look, _START_SECONDS)
        return found or [started.process.pid]

    def _come(self, kill: Kill, started: Started, before: int, began: float) -> bool:
        """Wait for the moment; False where the run ended before it."""
        wanted = min(before + kill.steps, self.length - 1)
        moments: dict[str, Callable[[], bool]] = {
            "start": lambda: True,
            "step": lambda: last_step(self.run) >= wanted,
            "saving": lambda: last_step(self.run) >= wanted and is_saving(self.run),
            "evaluation": lambda: last_step(self.run) >= wanted and self._is_evaluating(),
            "export": lambda: self._has_last_checkpoint() and "per epoch" in started.output(),
            "last evaluation": lambda: self._has_exported(began),
        }
        condition = moments[kill.moment]
        wait_until(
            lambda: condition() or started.process.poll() is not None, _START_SECONDS, every=0.005
        )
        time.sleep(kill.delay)
        return started.process.poll() is None

    def _is_evaluating(self) -> bool:
        step = last_step(self.run)
        return step % _EVALUATED == 0 < step and not has_evaluated(self.run, step)

    def _has_exported(self, began: float) -> bool:
        final = self.run / "final.safetensors"
        return final.is_file() and final.stat().st_mtime >= began

    def _has_last_checkpoint(self) -> bool:
        # A run that has it writes no further one: nothing else tells when its export begins.
        finished = checkpoints(self.run)
        return bool(finished) and finished[-1].name == f"step{self.length:08d}"

    def _kill(self, kill: Kill, started: Started, victims: list[int]) -> tuple[bool, str]:
        hit = self._what_is_under_way()
        for pid in victims:
            send(pid, signal.SIGKILL)
        if not started.gone(_SURVIVAL_SECONDS):
            survivors = len(started.pids())
            return False, f"{survivors} processes outlived it by {_SURVIVAL_SECONDS:.0f} s"
        if kill.victim == "launcher" and last_step(self.run) >= self.length:
            return False, "the ranks went on to the end without their launcher"
        return True, hit

    def _what_is_under_way(self) -> str:
        # A run holds its lock for as long as it lives.
        under_way = sorted({n for n in unfinished(self.run) if not n.endswith(".lock")})
        if "--data.eval" in self.kind.options and self._is_evaluating():
            under_way.append("an evaluation")
        return ", ".join(under_way) or f"after step {last_step(self.run)}"


def campaign(setting: Setting) -> Table:
    """Kill runs ``setting.count`` times."""
    return _attack(setting, _chains(setting))


def short(setting: Setting) -> Table:
    """One chain, killed while it saves in the background and while it evaluates."""
    kills = [_draw(setting, "run", moment) for moment in ("saving", "evaluation")]
    return _attack(setting, [Chain(setting, "short", _ALONE_IN_BACKGROUND, kills)])


def _attack(setting: Setting, chains: list[Chain]) -> Table:
    table = Table("kill")
    aimed: collections.Counter[str] = collections.Counter()
    with ThreadPoolExecutor(setting.jobs) as pool:
        for chain, results in zip(chains, pool.map(Chain.attack, chains), strict=True):
            for number, (kill, ok, outcome) in enumerate(results):
                case = _case(chain.kind, kill)
                attack = f"kill {number + 1} of {chain.run}, at {kill.moment} + {kill.delay:.3f} s"
                table.add(case, attack, ok, outcome)
                aimed[case] += "after step" not in outcome
    for case, count in aimed.items():
        print(f"{case}: {count} hit something that was under way", flush=True)
    return table


def _case(kind: Kind, kill: Kill) -> str:
    where = kind.launcher or "single process"
    what = kill.moment
    if what == "saving" and "--checkpoint.background" in kind.options:
        what = "saving in the background"
    return f"{where}, {kill.victim}, {what}"


def _chains(setting: Setting) -> list[Chain]:
    drawn: dict[Kind, list[Kill]] = {kind: [] for kind in _SHARES}
    total = sum(share for shares in _SHARES.values() for share in shares.values())
    done, owed = 0, 0.0
    for kind, shares in _SHARES.items():
        for (victim, moment), share in shares.items():
            owed += share * setting.count / total
            number = round(owed) - done
            done += number
            drawn[kind] += [_draw(setting, victim, moment) for _ in range(number)]
    chains = []
    for kind, kills in drawn.items():
        ends = [kill for kill in kills if kill.moment in _ENDS]
        others = [kill for kill in kills if kill.moment not in _ENDS]
        setting.random.shuffle(others)
        parts = -(-len(kills) // _LONGEST_CHAIN)
        for part in range(parts):
            chosen = others[part::parts] + ends[part::parts]
            chains.append(Chain(setting, f"{kind.name}-{part}", kind, chosen))
    # The longest first, so that none is left alone at the end.
    return sorted(chains, key=lambda chain: -len(chain.kills) * (1 + bool(chain.kind.launcher)))


def _draw(setting: Setting, victim: str, moment: str) -> Kill:
    chance = setting.random
    delay = chance.uniform(0, _DELAYS.get(moment, _DELAYS[""]))
    return Kill(victim, moment, chance.randint(1, _STEPS), delay)


if __name__ == "__main__":
    main({"kill": (campaign, 100)}, __doc__)
