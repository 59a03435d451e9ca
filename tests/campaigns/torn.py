"""Damaged checkpoints: each is noticed and named, and the newest intact one is taken.

Where all are damaged, or a damaged one is asked for by its path, the run is refused with status 2.
"""

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.campaigns.damage import DAMAGES, Target, clone
from tests.campaigns.program import Setting, main
from tests.campaigns.resumer import Resumed, Resumer
from tests.campaigns.table import Table
from tests.campaigns.traces import checkpoints, difference

_STEPS = 7
_KINDS = [(0, 1), (1, 1), (2, 1), (0, 2), (1, 2), (2, 2)]
# Of 300 damages.
_WHOLE_SHARE = 20 / 300
_SCOPES = ["newest", "newest", "newest", "newest", "every one", "by its path"]


@dataclass(frozen=True)
class Case:
    """A damage to a kind of run.

    Attributes:
        stage: of ZeRO.
        ranks: that saved and resume.
        damage: of ``DAMAGES``.
        scope: newest, every one, or by its path.
    """

    stage: int
    ranks: int
    damage: str
    scope: str

    @property
    def name(self) -> str:
        """For the table."""
        return f"stage {self.stage}, {self.ranks} rank(s), {self.scope}"


def campaign(setting: Setting) -> Table:
    """Damage ``setting.count`` checkpoints."""
    return _attack(setting, _KINDS)


def short(setting: Setting) -> Table:
    """The same with runs of one kind: two ranks, sharded optimizer states."""
    return _attack(setting, [(1, 2)])


def _attack(setting: Setting, kinds: Sequence[tuple[int, int]]) -> Table:
    table = Table("torn")
    wholes = max(1, round(setting.count * _WHOLE_SHARE))
    cases = list(_cases(setting, setting.count - wholes, kinds))
    for ranks in (1, 2):
        with Resumer(setting.subject, ranks) as resumer:
            for kind in dict.fromkeys((c.stage, c.ranks) for c in cases if c.ranks == ranks):
                _prepare(setting, resumer, *kind)
            for number, case in enumerate(cases):
                if case.ranks == ranks:
                    _try(table, setting, resumer, case, number)
    for number in range(wholes):
        _try_whole(table, setting, number)
    return table


def _cases(setting: Setting, count: int, kinds: Sequence[tuple[int, int]]) -> Iterator[Case]:
    # Every damage before any comes twice, each time to another kind of run.
    names = list(DAMAGES)
    for number in range(count):
        stage, ranks = kinds[(number + number // len(names)) % len(kinds)]
        yield Case(stage, ranks, names[number % len(names)], setting.random.choice(_SCOPES))


def _options(folder: Path, stage: int, seed: int) -> list[str]:
    return [
        *("--logging.dir", str(folder), "--max-steps", str(_STEPS), "--seed", str(seed)),
        *("--zero-stage", str(stage), "--checkpoint.keep", "3"),
    ]


def _saved(setting: Setting, stage: int, ranks: int, seed: int) -> Path:
    return setting.folder / f"saved-{stage}-{ranks}-{seed}"


def _prepare(setting: Setting, resumer: Resumer, stage: int, ranks: int) -> None:
    for seed in (0, 1):
        folder = _saved(setting, stage, ranks, seed)
        if not folder.exists():
            done = resumer.resume(_options(folder, stage, seed), train=True)
            assert done.status == 0, done.said
            assert len(checkpoints(folder / "run")) == 3


def _damaged(setting: Setting, case: Case, folder: Path) -> tuple[list[str], list[str]]:
    """Copy a run and damage it.

    Returns:
        Names of what is damaged, and the options that resume.
    """
    clone(_saved(setting, case.stage, case.ranks, 0) / "run", folder / "run")
    foreign = checkpoints(_saved(setting, case.stage, case.ranks, 1) / "run")
    kept = _saved(setting, case.stage, case.ranks, 0) / "run" / "checkpoints"
    here = checkpoints(folder / "run")
    chosen = here if case.scope == "every one" else here[-1:]
    names = []
    for checkpoint in chosen:
        other = next(kept / c.name for c in reversed(here) if c != checkpoint)
        same = next(c for c in foreign if c.name == checkpoint.name)
        target = Target(checkpoint, other, same, setting.random)
        names.append(DAMAGES[case.damage](target))
    options = _options(folder, case.stage, 0)
    which = "latest"
    if case.scope == "by its path":
        path = here[-1].with_name(names[-1])
        which = str(path if path.is_dir() else here[-1])
    return names, [*options, "--resume", which]


def _try(table: Table, setting: Setting, resumer: Resumer, case: Case, number: int) -> None:
    folder = setting.folder / f"damaged-{number}"
    names, options = _damaged(setting, case, folder)
    done = resumer.resume(options, verify=folder / "run")
    outcome = _judge(case, names, done)
    table.add(case.name, f"{case.damage}, {', '.join(names)}", not outcome, outcome or "noticed")
    _drop(folder)


def _judge(case: Case, names: list[str], done: Resumed) -> str:
    """What is wrong with how a damage was met; empty for nothing."""
    unnamed = [name for name in names if name not in done.said]
    if done.status not in (0, 2):
        return f"status {done.status}: {done.said[-200:]}"
    if done.verified is not None and done.verified != 1:
        return f"verify gave {done.verified}"
    if done.verified is not None and any(name not in done.verify_said for name in names):
        return f"verify does not name it: {done.verify_said[-200:]}"
    if case.scope == "newest":
        if done.status == 2:
            return f"refused, though an intact one was there: {done.said[-200:]}"
        if done.step != _STEPS - 1:
            return f"went on from step {done.step}"
    elif done.status == 0:
        return f"went on from step {done.step}"
    return f"does not name {unnamed[0]}: {done.said[-200:]}" if unnamed else ""


def _try_whole(table: Table, setting: Setting, number: int) -> None:
    """The same with processes as a user starts them, to the end of the run."""
    names = list(DAMAGES)
    stride = 7  # through the names in another order than above
    damage = names[number * stride % len(names)]
    case = Case(0, 1, damage, ["newest", "newest", "by its path"][number % 3])
    reference = _saved(setting, 0, 1, 0)
    if not reference.exists():
        with Resumer(setting.subject, 1) as resumer:
            _prepare(setting, resumer, 0, 1)
    folder = setting.folder / f"damaged-whole-{number}"
    damaged, options = _damaged(setting, case, folder)
    (folder / "run" / "final.safetensors").unlink()
    ended = setting.subject.start(folder, command=setting.subject.command(*options)).wait()
    outcome = _judge_whole(case, damaged, ended.status, ended.output)
    if not outcome and case.scope == "newest":
        outcome = difference(folder / "run", reference / "run")
    attack = f"{damage}, {', '.join(damaged)}"
    table.add(f"whole process, {case.scope}", attack, not outcome, outcome or "noticed")
    _drop(folder)


def _judge_whole(case: Case, names: list[str], status: int, output: str) -> str:
    expected = 0 if case.scope == "newest" else 2
    if status != expected:
        return f"status {status}, not {expected}: {output[-200:]}"
    if case.scope == "newest" and f"after step {_STEPS - 1}" not in output:
        return f"went on from another step: {output[-200:]}"
    unnamed = [name for name in names if name not in output]
    return f"does not name {unnamed[0]}: {output[-200:]}" if unnamed else ""


def _drop(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main({"torn": (campaign, 300)}, __doc__)
