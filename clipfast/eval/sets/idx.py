"""MNIST, and other data sets in its form: idx files of images and of labels, gzipped or not."""

import gzip
import struct
import zlib
from pathlib import Path

import numpy as np

from clipfast.eval.sets.found import FoundSet
from clipfast.eval.sets.rawpixels import RawPixels

_SPLITS = {"train": "train", "test": "t10k"}
# Below the folder that was given: as published, and as torchvision keeps it.
_FOLDERS = ("", "MNIST/raw", "raw", "data")
_BYTES = 8


def find_idx(path: Path, split: str) -> FoundSet | None:
    """Images and labels of a split; None where the folder holds no such files at all.

    Args:
        path: folder of ``train-images-idx3-ubyte``, ``t10k-labels-idx1-ubyte`` and so on, with or
            without ``.gz``.
        split: ``train`` or ``test``.

    Raises:
        ValueError: there is no such split, or a file of it is missing or damaged.
    """
    folder = next(
        (
            path / below
            for below in _FOLDERS
            if any(_file(path / below, part, "images") for part in _SPLITS.values())
        ),
        None,
    )
    if folder is None:
        return None
    if split not in _SPLITS:
        raise ValueError(f"{str(folder)!r} has the splits {', '.join(_SPLITS)}; got {split!r}")
    arrays = {}
    for kind, dimensions in (("images", 3), ("labels", 1)):
        file = _file(folder, _SPLITS[split], kind)
        if file is None:
            raise ValueError(
                f"{str(folder)!r} has no {kind} of split {split!r}: expected "
                f"{_SPLITS[split]}-{kind}-idx{dimensions}-ubyte or the same with .gz; fetch it"
            )
        arrays[kind] = _read(file, dimensions)
    images, labels = arrays["images"], arrays["labels"]
    if len(images) != len(labels):
        raise ValueError(
            f"{str(folder)!r} has {len(images):,} images and {len(labels):,} labels of split "
            f"{split!r}; fetch both again"
        )
    return FoundSet(path.resolve().name, labels.astype(np.int64), RawPixels(images), beside=path)


def _file(folder: Path, part: str, kind: str) -> Path | None:
    dimensions = 3 if kind == "images" else 1
    for separator in ("-", "."):
        for end in ("", ".gz"):
            path = folder / f"{part}-{kind}{separator}idx{dimensions}-ubyte{end}"
            if path.is_file():
                return path
    return None


def _read(path: Path, dimensions: int) -> np.ndarray:
    try:
        data = path.read_bytes()
        if path.suffix == ".gz":
            data = gzip.decompress(data)
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"cannot read {str(path)!r}: {error}; fetch it again") from None
    start = 4 + 4 * dimensions
    if data[:4] != bytes((0, 0, _BYTES, dimensions)) or len(data) < start:
        raise ValueError(
            f"{str(path)!r} is no idx file of bytes in {dimensions} dimensions; fetch it again"
        )
    shape = struct.unpack(f">{dimensions}I", data[4:start])
    if len(data) - start != np.prod(shape, dtype=np.int64):
        raise ValueError(
            f"{str(path)!r} says it holds {'x'.join(map(str, shape))} bytes and has "
            f"{len(data) - start:,}; fetch it again"
        )
    return np.frombuffer(data, np.uint8, offset=start).reshape(shape)
