"""Ways in which a checkpoint comes to harm: each takes its folder and another step's."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from clipfast.checkpoint.manifest import NAME


def _file(folder: Path) -> Path:
    return next(path for path in sorted(folder.iterdir()) if path.suffix == ".safetensors")


def _flip(path: Path, place: float, mask: int) -> None:
    data = bytearray(path.read_bytes())
    data[int(place * (len(data) - 1))] ^= mask
    path.write_bytes(data)


def _manifest(folder: Path, **values: object) -> None:
    document = json.loads((folder / NAME).read_text())
    document["content"].update(values)
    (folder / NAME).write_text(json.dumps(document))


def _swap_folder(folder: Path, other: Path) -> None:
    shutil.rmtree(folder)
    shutil.copytree(other, folder)


def _folder_for_a_file(folder: Path, other: Path) -> None:
    path = _file(folder)
    path.unlink()
    path.mkdir()


def _link(folder: Path, other: Path) -> None:
    path = _file(folder)
    os.replace(path, path.with_suffix(".kept"))
    path.symlink_to(path.with_suffix(".kept").name)


DAMAGES: dict[str, Callable[[Path, Path], object]] = {
    "a bit of a tensor": lambda folder, other: _flip(_file(folder), 0.5, 1),
    "a byte of the archive's head": lambda folder, other: _flip(_file(folder), 0.0, 255),
    "a byte of the archive's directory": lambda folder, other: _flip(_file(folder), 1.0, 255),
    "a missing file": lambda folder, other: _file(folder).unlink(),
    "an empty file": lambda folder, other: _file(folder).write_bytes(b""),
    "a file without its last byte": lambda folder, other: os.truncate(
        _file(folder), _file(folder).stat().st_size - 1
    ),
    "half a file": lambda folder, other: os.truncate(
        _file(folder), _file(folder).stat().st_size // 2
    ),
    "a longer file": lambda folder, other: _file(folder).write_bytes(
        _file(folder).read_bytes() + b"\0"
    ),
    "another step's file": lambda folder, other: shutil.copy(_file(other), _file(folder)),
    "another step's folder": _swap_folder,
    "a link": _link,
    "a folder for a file": _folder_for_a_file,
    "manifest null": lambda folder, other: (folder / NAME).write_text("null"),
    "manifest empty": lambda folder, other: (folder / NAME).write_text(""),
    "manifest cut": lambda folder, other: os.truncate(folder / NAME, 100),
    "manifest of another kind": lambda folder, other: (folder / NAME).write_text('{"a": [1]}'),
    "manifest nested": lambda folder, other: (folder / NAME).write_text("[" * 100_000),
    "manifest no text": lambda folder, other: (folder / NAME).write_bytes(b"\xff\xfe\0"),
    "manifest's step": lambda folder, other: _manifest(folder, step=21),
    "manifest's counter": lambda folder, other: _manifest(folder, counter=999),
    "manifest's files": lambda folder, other: _manifest(folder, files={}),
    "manifest's run": lambda folder, other: _manifest(folder, run="other"),
}
