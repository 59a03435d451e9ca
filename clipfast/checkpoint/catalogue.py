"""The checkpoints of a run's folder, and which of them is the newest."""

import re
from dataclasses import dataclass
from pathlib import Path

from clipfast.checkpoint.manifest import NAME, OLD_NAME, Damaged, Manifest

_FOLDER = re.compile(r"step\d{8,}")


@dataclass(frozen=True)
class Found:
    """A folder that a finished save left.

    Attributes:
        path: of the folder.
        manifest: None where it cannot be read.
        damage: why not; empty where it can.
        is_damage: False where it could not be read now, and may be intact.
    """

    path: Path
    manifest: Manifest | None
    damage: str = ""
    is_damage: bool = True


def find(folder: Path) -> list[Found]:
    """All checkpoints of a folder, the newest last; what killed runs left unfinished is none.

    One whose manifest cannot be read, or is not there, stands where its step would.

    Args:
        folder: ``RUN/checkpoints``.
    """
    paths = [path for path in folder.glob("step*") if _FOLDER.fullmatch(path.name)]
    found = [look(path) or _without_manifest(path) for path in paths]
    kept = [entry for entry in found if entry is not None]
    # By counter: clocks differ, and after a resume from an earlier step the newest has a lower one.
    readable = sorted((entry for entry in kept if entry.manifest), key=_age)
    for entry in sorted((e for e in kept if not e.manifest), key=lambda e: e.path.name):
        later = (i for i, e in enumerate(readable) if e.path.name > entry.path.name)
        readable.insert(next(later, len(readable)), entry)
    return readable


def newest_first(folder: Path) -> list[Found]:
    """The same, in the order in which a resume tries them."""
    return find(folder)[::-1]


def look(path: Path) -> Found | None:
    """One checkpoint.

    Args:
        path: of its folder.

    Returns:
        None where no finished save left one.
    """
    try:
        manifest = Manifest.read(path)
    except Damaged as error:
        return Found(path, None, str(error))
    except OSError as error:
        reason = f"{error.filename or path} cannot be read: {error.strerror}"
        return Found(path, None, reason, is_damage=False)
    return Found(path, manifest) if manifest else None


def _without_manifest(path: Path) -> Found | None:
    # A save gives its folder this name last of all. Versions before 0.3 gave it first.
    if not path.is_dir() or not any(path.iterdir()):
        return None
    lost = "it was lost, or an earlier version was killed while it saved"
    return Found(path, None, f"{path} has no {NAME}: {lost}")


def _age(found: Found) -> tuple[int, float, str]:
    assert found.manifest is not None
    counter = found.manifest.counter
    # Those of versions without a counter have their times alone.
    time = 0.0 if counter >= 0 else _saved_at(found.path)
    return counter, time, found.path.name


def _saved_at(path: Path) -> float:
    for name in (NAME, OLD_NAME):
        if (path / name).is_file():
            return (path / name).stat().st_mtime
    return 0.0
