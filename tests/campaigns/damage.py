"""Ways in which a checkpoint stops being what was saved."""

import json
import os
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.campaigns.traces import manifest_of

_PAGE = 4096


@dataclass(frozen=True)
class Target:
    """What is damaged.

    Attributes:
        checkpoint: a whole one of a copied run.
        other: one of another step of the same run.
        foreign: one of another run of the same kind, the same step.
        chance: picks file and place.
    """

    checkpoint: Path
    other: Path
    foreign: Path
    chance: random.Random

    @property
    def manifest(self) -> Path:
        """The file that says what is in it."""
        found = manifest_of(self.checkpoint)
        assert found is not None
        return found

    def pick(self) -> Path:
        """One of the files with tensors."""
        files = sorted(p for p in self.checkpoint.iterdir() if p != self.manifest)
        return self.chance.choice(files)


def clone(run: Path, to: Path) -> None:
    """Copy a run; files share their bytes until one is damaged."""
    shutil.copytree(run, to, copy_function=os.link)


def _rewrite(path: Path, data: bytes) -> None:
    # A new file: the old one's bytes belong to the run that was copied, too.
    path.unlink()
    path.write_bytes(data)


def _flip(path: Path, chance: random.Random, mask: int) -> str:
    data = bytearray(path.read_bytes())
    place = chance.randrange(len(data))
    data[place] ^= mask
    _rewrite(path, bytes(data))
    return path.name


def _bit(target: Target) -> str:
    return _flip(target.pick(), target.chance, 1 << target.chance.randrange(8))


def _byte(target: Target) -> str:
    return _flip(target.pick(), target.chance, 0xFF)


def _cut(path: Path, size: int) -> str:
    _rewrite(path, path.read_bytes()[:size])
    return path.name


def _cut_one(target: Target) -> str:
    path = target.pick()
    return _cut(path, path.stat().st_size - 1)


def _cut_half(target: Target) -> str:
    path = target.pick()
    return _cut(path, path.stat().st_size // 2)


def _cut_all(target: Target) -> str:
    return _cut(target.pick(), 0)


def _extend(target: Target) -> str:
    path = target.pick()
    _rewrite(path, path.read_bytes() + target.chance.randbytes(target.chance.choice([1, _PAGE])))
    return path.name


def _zero_page(target: Target) -> str:
    path = target.pick()
    data = bytearray(path.read_bytes())
    pages = [p for p in range(0, len(data), _PAGE) if any(data[p : p + _PAGE])]
    place = target.chance.choice(pages)
    data[place : place + _PAGE] = bytes(len(data[place : place + _PAGE]))
    _rewrite(path, bytes(data))
    return path.name


def _remove(target: Target) -> str:
    path = target.pick()
    path.unlink()
    return path.name


def _from(path: Path, source: Path) -> str:
    _rewrite(path, (source / path.name).read_bytes())
    return path.name


def _of_other_step(target: Target) -> str:
    return _from(target.pick(), target.other)


def _of_other_run(target: Target) -> str:
    return _from(target.pick(), target.foreign)


def _folder_instead(target: Target) -> str:
    path = target.pick()
    path.unlink()
    path.mkdir()
    return path.name


def _renamed(target: Target) -> str:
    number = int(target.checkpoint.name.removeprefix("step")) + 100
    target.checkpoint.rename(target.checkpoint.with_name(f"step{number:08d}"))
    return f"step{number:08d}"


def _content_of_other_step(target: Target) -> str:
    shutil.rmtree(target.checkpoint)
    shutil.copytree(target.other, target.checkpoint, copy_function=os.link)
    return target.checkpoint.name


def _manifest_is(text: str) -> "Damage":
    def damage(target: Target) -> str:
        path = target.manifest
        _rewrite(path, text.encode())
        return path.name

    return damage


def _manifest_cut(target: Target) -> str:
    return _cut(target.manifest, target.manifest.stat().st_size // 2)


def _manifest_digit(target: Target) -> str:
    path = target.manifest
    text = path.read_text()
    place = target.chance.choice([i for i, letter in enumerate(text) if letter.isdigit()])
    digit = str((int(text[place]) + target.chance.randint(1, 9)) % 10)
    _rewrite(path, (text[:place] + digit + text[place + 1 :]).encode())
    return path.name


def _manifest_edited(target: Target) -> str:
    path = target.manifest
    document = json.loads(path.read_text())
    document.get("content", document)["step"] += 1
    _rewrite(path, json.dumps(document).encode())
    return path.name


def _manifest_of_other_step(target: Target) -> str:
    return _from(target.manifest, target.other)


def _manifest_of_other_run(target: Target) -> str:
    # It is true in itself: whether it or the files are the wrong ones cannot be told.
    _from(target.manifest, target.foreign)
    return target.checkpoint.name


def _manifest_removed(target: Target) -> str:
    path = target.manifest
    path.unlink()
    return target.checkpoint.name


Damage = Callable[[Target], str]
"""Does it; returns the name of what is damaged now."""

DAMAGES: dict[str, Damage] = {
    "a bit flipped": _bit,
    "a byte flipped": _byte,
    "a page zeroed": _zero_page,
    "cut by a byte": _cut_one,
    "cut in half": _cut_half,
    "cut to nothing": _cut_all,
    "extended": _extend,
    "file missing": _remove,
    "file of another step": _of_other_step,
    "file of another run": _of_other_run,
    "a folder instead of a file": _folder_instead,
    "folder renamed to another step": _renamed,
    "content of another step": _content_of_other_step,
    "manifest null": _manifest_is("null"),
    "manifest empty": _manifest_is(""),
    "manifest {}": _manifest_is("{}"),
    "manifest []": _manifest_is("[]"),
    "manifest cut": _manifest_cut,
    "manifest, a digit": _manifest_digit,
    "manifest, the step": _manifest_edited,
    "manifest of another step": _manifest_of_other_step,
    "manifest of another run": _manifest_of_other_run,
    "manifest missing": _manifest_removed,
}
