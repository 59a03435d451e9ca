"""``manifest.json``: a checkpoint's files with their hashes, and where it stands in its run.

    {"sha256": of "content" as canonical JSON, "content": {"format": 2, "run": ..., "counter": ...,
     "step": ..., "layout": {...}, "state": {...}, "files": {NAME: {"size": ..., "sha256": ...}}}}

It is written last, so that a folder without one is what a killed run left.
"""

import hashlib
import json
import os
import re
import stat
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from clipfast.files import write_whole

NAME = "manifest.json"
# Of versions 0.1 and 0.2: a step, a layout and a state, and no word of the files.
OLD_NAME = "complete.json"
# 2: safetensors of named fragments. 1: what DeepSpeed wrote.
FORMAT = 2
# In the state of a checkpoint that is kept for good.
FOR_GOOD = "kept_for_good"
# No manifest is larger, in bytes.
LARGEST = 256 << 20
_CHUNK = 4 << 20
# A hash takes a core, so that several files at a time reach the rate of the disk.
_THREADS = 4


class Problem(NamedTuple):
    """A file that is not what was saved.

    Attributes:
        text: for a person; it begins with the file's path.
        is_damage: False where the file could not be read now, and may be intact.
    """

    text: str
    is_damage: bool = True


class Damaged(ValueError):
    """A checkpoint is not what was saved; the message names the file and what is wrong with it."""


@dataclass(frozen=True)
class Entry:
    """A file as it was written.

    Attributes:
        size: bytes.
        sha256: of its content, in hexadecimal digits.
    """

    size: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """What a checkpoint is.

    Attributes:
        run: id of the run that saved it; empty in those of earlier versions.
        counter: of checkpoints saved in this run's folder: the largest is the newest, whatever
            clocks said; -1 in those of earlier versions.
        step: optimizer steps taken.
        layout: what the run that loads it must share, such as the ZeRO stage.
        state: what else a run needs to go on.
        files: by name; empty in those of earlier versions.
    """

    run: str
    counter: int
    step: int
    layout: Mapping[str, Any]
    state: Mapping[str, Any]
    files: Mapping[str, Entry] = field(default_factory=dict)

    @property
    def is_verifiable(self) -> bool:
        """Whether there are hashes to compare with."""
        return bool(self.files)

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(entry.size for entry in self.files.values())

    def write(self, folder: Path, *, sync: bool = True) -> None:
        """Write it into a checkpoint's folder.

        Args:
            folder: of the checkpoint; its files are there.
            sync: wait until it is on the disk.

        Raises:
            OSError: it cannot be written.
        """
        # As JSON gives it back: a number for a key comes back as text.
        content = json.loads(json.dumps({"format": FORMAT, **asdict(self)}))
        document = {"sha256": _hash_of(content), "content": content}
        write_whole(folder / NAME, json.dumps(document, indent=1).encode(), sync=sync)

    @classmethod
    def parse(cls, data: bytes, path: str, folder_name: str) -> "Manifest":
        """Of a manifest's bytes.

        Args:
            data: as ``write`` wrote them.
            path: that they were read from, for messages.
            folder_name: of the checkpoint.

        Raises:
            Damaged: they cannot be what was written.
        """
        document = _parse(data, path)
        try:
            content = document["content"]
            if document["sha256"] != _hash_of(content):
                raise Damaged(f"{path} has other content than was saved")
            if content["format"] > FORMAT:
                raise Damaged(
                    f"{path} has format {content['format']}, of a later version of clipfast"
                )
            files = {name: Entry(**entry) for name, entry in content["files"].items()}
            manifest = cls(
                content["run"],
                content["counter"],
                content["step"],
                content["layout"],
                content["state"],
                files,
            )
            _check(manifest, path, folder_name)
        except (KeyError, TypeError, AttributeError) as error:
            raise Damaged(f"{path} is no manifest: {type(error).__name__} {error}") from error
        return manifest

    @classmethod
    def read(cls, folder: Path) -> "Manifest | None":
        """Of a checkpoint's folder.

        Returns:
            None where the folder has none: it was not finished.

        Raises:
            Damaged: it is there and cannot be what was written.
            OSError: it cannot be read.
        """
        if os.path.lexists(folder / NAME):
            path = folder / NAME
            return cls.parse(_bytes(path), str(path), folder.name)
        if os.path.lexists(folder / OLD_NAME):
            return _read_old(folder / OLD_NAME)
        return None


def problems(folder: Path, manifest: Manifest, names: Iterable[str] | None = None) -> list[Problem]:
    """Compare the files of a checkpoint with its manifest: every byte of them is read.

    Args:
        folder: of the checkpoint.
        manifest: of it.
        names: of the files to look at; None for all.

    Returns:
        One entry for each file that is not what was saved.
    """
    chosen = list(manifest.files if names is None else names)
    with ThreadPoolExecutor(min(_THREADS, max(1, len(chosen)))) as pool:
        found = pool.map(lambda name: _problem(folder / name, manifest.files[name]), chosen)
        return [problem for problem in found if problem]


def entry_of(path: Path) -> Entry:
    """A file as it is now.

    Raises:
        OSError: it cannot be read.
    """
    return Entry(path.stat().st_size, _sha256(path))


def _problem(path: Path, entry: Entry) -> Problem | None:
    try:
        status = path.lstat()
        if not stat.S_ISREG(status.st_mode):
            return Problem(f"{path} is no plain file")
        if status.st_size != entry.size:
            return Problem(f"{path} has {status.st_size:,} bytes, {entry.size:,} were saved")
        if _sha256(path) != entry.sha256:
            return Problem(f"{path} has other content than was saved")
    except FileNotFoundError:
        return Problem(f"{path} is missing")
    except OSError as error:
        return Problem(f"{path} cannot be read: {error.strerror}", is_damage=False)
    return None


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    buffer = bytearray(_CHUNK)
    view = memoryview(buffer)
    with open(path, "rb", buffering=0) as file:
        while count := file.readinto(buffer):
            digest.update(view[:count])
    return digest.hexdigest()


def _hash_of(content: Any) -> str:
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def _bytes(path: Path) -> bytes:
    if not stat.S_ISREG(path.lstat().st_mode):
        raise Damaged(f"{path} is no plain file")
    if path.stat().st_size > LARGEST:
        raise Damaged(f"{path} has {path.stat().st_size:,} bytes: no manifest is so large")
    return path.read_bytes()


def _parse(data: bytes, path: str) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise Damaged(f"{path} is no JSON: {error}") from error


def _check(manifest: Manifest, path: str, folder_name: str) -> None:
    """Raise unless every value is of its kind, and no name leads out of the folder."""
    numbers = (manifest.counter, manifest.step, *(e.size for e in manifest.files.values()))
    texts = (manifest.run, *(e.sha256 for e in manifest.files.values()))
    tables = (manifest.layout, manifest.state)
    if not (
        all(type(number) is int and number >= 0 for number in numbers)
        and all(isinstance(text, str) for text in texts)
        and all(isinstance(table, dict) for table in tables)
    ):
        raise Damaged(f"{path} is no manifest: a value is of another kind")
    if not manifest.files:
        raise Damaged(f"{path} names no file")
    for name in manifest.files:
        if name != os.path.basename(name) or name in ("", ".", ".."):
            raise Damaged(f"{path} names {name!r}, which is no file of this folder")
    expected = folder_name_of(manifest.step)
    if re.fullmatch(r"step\d{8,}", folder_name) and folder_name != expected:
        raise Damaged(f"{path} belongs to {expected}, not to {folder_name}")


def folder_name_of(step: int) -> str:
    """Of the checkpoint after a step."""
    return f"step{step:08d}"


def _read_old(path: Path) -> Manifest:
    document = _parse(_bytes(path), str(path))
    if not isinstance(document, dict) or not isinstance(document.get("layout"), dict):
        raise Damaged(f"{path} says nothing of a checkpoint")
    state = {key: value for key, value in document.items() if key not in ("step", "layout")}
    step = document.get("step")
    if type(step) is not int or step < 0:
        raise Damaged(f"{path} has no step")
    return Manifest("", -1, step, document["layout"], state)
