"""CIFAR-10 and CIFAR-100 as their authors publish them: pickles or binary, packed or not.

A third form holds CIFAR-10 for browsers: PNG sheets with one image per row, and labels in JSON.
"""

import json
import tarfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from clipfast.eval.sets.found import FoundSet
from clipfast.eval.sets.rawpixels import RawPixels
from clipfast.eval.sets.tamepickle import load_tame

_SIDE = 32
_PIXELS = 3 * _SIDE * _SIDE

# Images as [N, 32, 32, 3], and labels as [N].
_Part = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class _Form:
    """One way in which a data set is published.

    Attributes:
        archive: name of the packed form; "" where there is none.
        folder: that it unpacks to.
        parts: files of each split.
        read: makes images and labels of the bytes of one file.
    """

    archive: str
    folder: str
    parts: Mapping[str, tuple[str, ...]]
    read: Callable[[bytes], _Part]


def find_cifar(name: str, path: Path, split: str) -> FoundSet | None:
    """CIFAR where it lies in a folder or an archive; None where no part of it does.

    Args:
        name: ``cifar10`` or ``cifar100``.
        path: of the folder that was unpacked, of the one around it, of the packed archive, or of
            the folder that holds that.
        split: ``train`` or ``test``.

    Raises:
        ValueError: there is no such split, or a file of it is missing or damaged.
    """
    for form in _FORMS[name]:
        reader = _reader(form, path)
        if reader is None:
            continue
        if split not in form.parts:
            raise ValueError(f"{name} has the splits {', '.join(form.parts)}; got {split!r}")
        parts = [_read(form, reader, file) for file in form.parts[split]]
        return _joined(name, path, parts)
    return None


def find_sheets(path: Path, split: str) -> FoundSet | None:
    """CIFAR-10 as PNG sheets of one image per row; None where there are none.

    Args:
        path: folder of ``test_batch.png`` and ``test_labels.json``, or ``test_lables.json``.
        split: ``train`` or ``test``.

    Raises:
        ValueError: there is no such split, or a file of it is missing or damaged.
    """
    if not (path / "test_batch.png").is_file():
        return None
    sheets = {key: tuple(f"{name}.png" for name in names) for key, names in _TEN.items()}
    if split not in sheets:
        raise ValueError(f"cifar10 has the splits {', '.join(sheets)}; got {split!r}")
    pixels = np.concatenate([_sheet(path / name) for name in sheets[split]])
    spellings = [path / f"{split}_labels.json", path / f"{split}_lables.json"]
    file = next((each for each in spellings if each.is_file()), spellings[0])
    try:
        labels = np.array(json.loads(file.read_text()), np.int64)
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(f"cannot read labels {str(file)!r}: {error}; fetch it again") from None
    if labels.shape != (len(pixels),):
        raise ValueError(
            f"{str(file)!r} has {labels.size:,} labels for {len(pixels):,} images; fetch both again"
        )
    return FoundSet("cifar10", labels, RawPixels(pixels), beside=path)


def _sheet(path: Path) -> np.ndarray:
    try:
        rows = np.asarray(Image.open(path).convert("RGB"))
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"cannot read sheet {str(path)!r}: {error}; fetch it again") from None
    if rows.shape[1] != _SIDE * _SIDE:
        raise ValueError(
            f"sheet {str(path)!r} is {rows.shape[1]} pixels wide; expected {_SIDE * _SIDE}, one "
            "image per row"
        )
    return rows.reshape(-1, _SIDE, _SIDE, 3)


def _reader(form: _Form, path: Path) -> Callable[[str], bytes] | None:
    """What gives the bytes of a part, where any part of this form is there."""
    names = [name for parts in form.parts.values() for name in parts]
    for folder in (path, path / form.folder):
        if any((folder / name).is_file() for name in names):
            return partial(_from_folder, folder)
    for archive in (path, path / form.archive):
        if archive.name == form.archive and archive.is_file():
            return partial(_from_archive, archive)
    return None


def _from_folder(folder: Path, name: str) -> bytes:
    try:
        return (folder / name).read_bytes()
    except OSError as error:
        raise ValueError(
            f"cannot read {str(folder / name)!r}: {error.strerror}; unpack the archive again"
        ) from None


def _from_archive(archive: Path, name: str) -> bytes:
    try:
        with tarfile.open(archive) as tar:
            member = next((each for each in tar if Path(each.name).name == name), None)
            file = None if member is None else tar.extractfile(member)
            if file is None:
                raise ValueError(f"it has no file {name!r}")
            return file.read()
    except (OSError, EOFError, ValueError, tarfile.TarError) as error:
        raise ValueError(f"cannot read {str(archive)!r}: {error}; fetch it again") from None


def _read(form: _Form, reader: Callable[[str], bytes], name: str) -> _Part:
    data = reader(name)
    try:
        return form.read(data)
    except ValueError as error:
        raise ValueError(
            f"{name!r} of {form.folder} is no part of CIFAR: {error}; fetch the archive again"
        ) from None


def _joined(name: str, path: Path, parts: Sequence[_Part]) -> FoundSet:
    pixels = np.concatenate([part[0] for part in parts])
    labels = np.concatenate([part[1] for part in parts])
    return FoundSet(name, labels, RawPixels(pixels), beside=path if path.is_dir() else None)


def _from_pickle(labels_key: str, data: bytes) -> _Part:
    batch = load_tame(data)
    if not isinstance(batch, dict) or not {"data", labels_key} <= set(batch):
        raise ValueError(f"it has no 'data' and {labels_key!r}")
    pixels = batch["data"]
    labels = np.array(batch[labels_key])
    if not isinstance(pixels, np.ndarray) or pixels.ndim != 2 or pixels.shape[1] != _PIXELS:
        raise ValueError(f"its 'data' are not [N, {_PIXELS}] bytes")
    if labels.shape != (len(pixels),) or labels.dtype.kind not in "iu":
        raise ValueError(f"it has {labels.size:,} {labels_key} for {len(pixels):,} images")
    return _images(pixels), labels.astype(np.int64)


def _from_binary(bytes_of_labels: int, data: bytes) -> _Part:
    """Records of one label or, coarse before fine, two; then the planes of red, green, blue."""
    size = bytes_of_labels + _PIXELS
    if not data or len(data) % size:
        raise ValueError(f"its {len(data):,} bytes are no multiple of {size:,}")
    records = np.frombuffer(data, np.uint8).reshape(-1, size)
    labels = records[:, bytes_of_labels - 1].astype(np.int64)
    return _images(records[:, bytes_of_labels:]), labels


def _images(planes: np.ndarray) -> np.ndarray:
    return planes.reshape(-1, 3, _SIDE, _SIDE).transpose(0, 2, 3, 1)


_TEN = {
    "train": tuple(f"data_batch_{number}" for number in range(1, 6)),
    "test": ("test_batch",),
}
_HUNDRED = {"train": ("train",), "test": ("test",)}


def _binary(parts: Mapping[str, tuple[str, ...]]) -> Mapping[str, tuple[str, ...]]:
    return {split: tuple(f"{name}.bin" for name in names) for split, names in parts.items()}


_FORMS = {
    "cifar10": (
        _Form(
            "cifar-10-python.tar.gz", "cifar-10-batches-py", _TEN, partial(_from_pickle, "labels")
        ),
        _Form(
            "cifar-10-binary.tar.gz",
            "cifar-10-batches-bin",
            _binary(_TEN),
            partial(_from_binary, 1),
        ),
    ),
    "cifar100": (
        _Form(
            "cifar-100-python.tar.gz",
            "cifar-100-python",
            _HUNDRED,
            partial(_from_pickle, "fine_labels"),
        ),
        _Form(
            "cifar-100-binary.tar.gz",
            "cifar-100-binary",
            _binary(_HUNDRED),
            partial(_from_binary, 2),
        ),
    ),
}
