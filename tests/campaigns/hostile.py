"""Checkpoints, weights and shards made to run something: nothing runs, each is refused by name.

A canary file tells whether anything ran; a file outside of the run's folder, whether anything was
reached there.
"""

import pickle
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.campaigns.damage import clone
from tests.campaigns.hostile_folders import FOLDERS, Trap, as_before, by_deepspeed, sign
from tests.campaigns.hostile_fragments import FRAGMENTS, spoil
from tests.campaigns.payloads import FORMS, calls
from tests.campaigns.program import Setting, main
from tests.campaigns.resumer import Resumed, Resumer
from tests.campaigns.table import Table
from tests.campaigns.traces import checkpoints

_OPTIONS = ["--max-steps", "7", "--zero-stage", "1", "--checkpoint.keep", "3"]
_SECRET = b"a file of somebody else"


@dataclass(frozen=True)
class Attack:
    """One hostile thing.

    Attributes:
        case: its kind.
        name: which of its kind.
        lay: puts it there; returns the options that meet it and the name that must be said.
        statuses: that the run may end with.
        train: go on to the end, where the harm is done later than at the start.
    """

    case: str
    name: str
    lay: Callable[[Trap], tuple[list[str], str]]
    statuses: tuple[int, ...] = (2,)
    train: bool = False


def campaign(setting: Setting) -> Table:
    """Try all attacks, or the first ``setting.count`` of each kind where that is less."""
    table = Table("hostile")
    attacks = _pickles() + _fragments() + _folders() + _weights() + _shards(setting)
    setting.random.shuffle(attacks)
    # Every kind has its turn before a second of one.
    turns: dict[str, int] = {}
    order = []
    for attack in attacks:
        turns[attack.case] = turns.get(attack.case, -1) + 1
        order.append((turns[attack.case], attack))
    chosen = [attack for _, attack in sorted(order, key=lambda pair: pair[0])][: setting.count]
    with Resumer(setting.subject, 1) as resumer:
        saved = setting.folder / "saved"
        done = resumer.resume(["--logging.dir", str(saved), *_OPTIONS], train=True)
        assert done.status == 0, done.said
        for number, attack in enumerate(chosen):
            _try(table, setting, resumer, attack, setting.folder / f"attack-{number}")
    return table


def _try(table: Table, setting: Setting, resumer: Resumer, attack: Attack, folder: Path) -> None:
    trap = Trap(folder / "runs" / "run", folder / "victim", folder / "canary")
    trap.victim.mkdir(parents=True)
    (trap.victim / "secret").write_bytes(_SECRET)
    clone(setting.folder / "saved" / "run", trap.run)
    options, named = attack.lay(trap)
    assert not trap.canary.exists()
    everything = ["--logging.dir", str(folder / "runs"), *_OPTIONS, *options]
    done = resumer.resume(everything, train=attack.train)
    outcome = _judge(attack, trap, named, done)
    table.add(attack.case, attack.name, not outcome, outcome or "nothing ran")
    shutil.rmtree(folder, ignore_errors=True)


def _judge(attack: Attack, trap: Trap, named: str, done: Resumed) -> str:
    if trap.canary.exists():
        return "EXECUTED"
    secret = trap.victim / "secret"
    if not secret.is_file() or secret.read_bytes() != _SECRET:
        return "a file outside of the run's folder was changed"
    if done.status not in attack.statuses:
        return f"status {done.status}, not {attack.statuses}: {done.said[-250:]}"
    return f"does not name {named}: {done.said[-250:]}" if named not in done.said else ""


def _pickles() -> list[Attack]:
    """Checkpoints with pickles, each with a manifest that is true of them."""

    def attack(call: str, form: str, file: str, version: str, which: str) -> Attack:
        def lay(trap: Trap) -> tuple[list[str], str]:
            newest = checkpoints(trap.run)[-1]
            if version != "now":
                for checkpoint in checkpoints(trap.run):
                    by_deepspeed(checkpoint)
            # Of versions before, every file is a pickle.
            found = [*newest.glob(f"*{file}*"), *newest.glob("rank*.safetensors")]
            path = found[0]
            path.unlink()
            FORMS[form](calls(trap.canary)[call], trap.canary, path)
            if version != "of 0.2":
                sign(newest)
            else:
                # All of them: one without a counter is older than one with.
                for checkpoint in checkpoints(trap.run):
                    as_before(checkpoint)
            return ["--resume", "latest" if which == "latest" else str(newest)], path.name

        return Attack(f"checkpoint, {form}", f"{call}, {file}, {version}, {which}", lay)

    names = list(_names_of_calls())
    attacks = [
        attack(name, "zip", ("model_states", "optim_states")[i % 2], version, "latest")
        for i, name in enumerate(names)
        for version in ("now", "by DeepSpeed")
    ]
    for form in FORMS:
        for file in ("model_states", "optim_states"):
            attacks.append(attack("os.system", form, file, "by DeepSpeed", "by its path"))
        attacks.append(attack("os.system", form, "rank", "now", "by its path"))
        # The first that is read: the others are as empty as it was.
        attacks.append(attack("exec", form, "model_states", "of 0.2", "latest"))
    return attacks


def _names_of_calls() -> list[str]:
    """Names of all calls."""
    with tempfile.TemporaryDirectory() as folder:
        return list(calls(Path(folder) / "canary"))


def _fragments() -> list[Attack]:
    """Checkpoints of safetensors that are no whole checkpoint."""

    def attack(how: str) -> Attack:
        def lay(trap: Trap) -> tuple[list[str], str]:
            newest = checkpoints(trap.run)[-1]
            named = spoil(next(newest.glob("rank*.safetensors")), how)
            sign(newest)
            return ["--resume", "latest"], named

        return Attack("checkpoint, fragments", how, lay)

    return [attack(how) for how in FRAGMENTS]


def _folders() -> list[Attack]:
    def attack(name: str) -> Attack:
        lay_trap, status = FOLDERS[name]

        def lay(trap: Trap) -> tuple[list[str], str]:
            lay_trap(trap)
            return ["--resume", "latest"], ""

        statuses = (0, 2) if status is None else (status,)
        return Attack("run's folder", name, lay, statuses, train=status is None)

    return [attack(name) for name in FOLDERS]


def _weights() -> list[Attack]:
    def attack(call: str, form: str, suffix: str) -> Attack:
        def lay(trap: Trap) -> tuple[list[str], str]:
            path = trap.victim.parent / f"weights{suffix}"
            FORMS[form](calls(trap.canary)[call], trap.canary, path)
            return ["--model.weights", str(path)], path.name

        return Attack(f"weights, {form}", f"{call}, {suffix}", lay)

    def header(data: bytes) -> Attack:
        def lay(trap: Trap) -> tuple[list[str], str]:
            path = trap.victim.parent / "weights.safetensors"
            path.write_bytes(data)
            return ["--model.weights", str(path)], path.name

        return Attack("weights, safetensors header", repr(data[:24]), lay)

    attacks = [attack(name, "zip", ".pt") for name in _names_of_calls()]
    attacks += [attack("os.system", form, ".pt") for form in FORMS]
    attacks += [attack("exec", form, ".safetensors") for form in ("zip", "plain pickle")]
    overlap = b'{"a":{"dtype":"F32","shape":[9],"data_offsets":[0,4]}}'
    outside = b'{"../a":{"dtype":"F32","shape":[1],"data_offsets":[0,4294967296]}}'
    for head in (overlap, outside, b"[" * 65536):
        attacks.append(header(len(head).to_bytes(8, "little") + head + bytes(4)))
    attacks.append(header((1 << 62).to_bytes(8, "little") + b"{}"))
    return attacks


def _shards(setting: Setting) -> list[Attack]:
    def attack(name: str, make: Callable[[Path, bytes], bytes]) -> Attack:
        def lay(trap: Trap) -> tuple[list[str], str]:
            source = setting.subject.repository / "clipfast" / "data" / "sample"
            shard = trap.victim.parent / "shard.tar"
            shutil.copy(source / "noto-emoji.tar", shard)
            index = (source / "noto-emoji.idx").read_bytes()
            shard.with_suffix(".idx").write_bytes(make(trap.canary, index))
            return ["--data.train", str(shard)], "shard"

        # Read with the first batch, where a refusal is a failure of the run.
        return Attack("index of a shard", name, lay, (1, 2), train=True)

    return [
        attack("a pickle", lambda canary, _: pickle.dumps(calls(canary)["os.system"])),
        attack("a count without end", lambda _, index: b"v1.2 99999999999999\n" + index[9:]),
        attack("offsets outside", lambda _, index: index.replace(b" 512 ", b" 99999999999 ")),
        attack("not UTF-8", lambda _, index: b"v1.2 1\n\xff\xfe \x80 \x81 \x82\n"),
    ]


if __name__ == "__main__":
    main({"hostile": (campaign, 100)}, __doc__)
