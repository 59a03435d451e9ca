"""What `torch.save` wrote, in both of its forms, read without running what a file brings.

Since torch 1.6 that is a zip: `ROOT/data.pkl` pickles the object, and `ROOT/data/N` holds the bytes
of storage N. Before, it was one pickle after the other with the storages behind them.

The file is mapped: of a training checkpoint only the weights are ever read from disk. A storage
must be as large as its entry and have its checksum; `torch.load` trusts the file there.
"""

from __future__ import annotations

import io
import os
import pickle
import zipfile
import zlib
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from clipfast.models.inert import (
    InertUnpickler,
    Stored,
    View,
    largest_pickle,
    shows_module,
    unpickle,
)
from clipfast.models.zips import Entry, locate, open_zip, read_entry

# How a file of torch before 1.6 begins: the pickle of a number.
LEGACY_START = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
_LEGACY_VERSION = 1001
# A checksum takes as long as reading from memory: more threads than this gain nothing.
_THREADS = 4


class Storages:
    """The tensors of a file, by their views.

    Args:
        path: the file.
        places: where each storage lies, by its name.
    """

    def __init__(self, path: Path, places: Callable[[Stored], Entry]) -> None:
        self._places = places
        size = path.stat().st_size
        self._bytes = torch.from_file(str(path), shared=False, size=size, dtype=torch.uint8)
        self._numbers: dict[tuple[str, torch.dtype], Tensor] = {}

    def check(self, views: Iterable[View]) -> None:
        """Refuse storages whose checksum is another one than the file says, several at a time.

        Args:
            views: tensors that will be asked for.

        Raises:
            ValueError: a storage is damaged.
        """
        storages = list({view.storage.key: view.storage for view in views}.values())
        with ThreadPoolExecutor(min(_THREADS, os.cpu_count() or 1)) as threads:
            whole = list(threads.map(self._is_whole, storages))
        if not all(whole):
            damaged = [
                s.key[:99] for s, is_whole in zip(storages, whole, strict=True) if not is_whole
            ]
            raise ValueError(
                f"the checksum of {len(damaged)} storages is wrong, such as of {damaged[0]}: the "
                "file is damaged, take another copy"
            )

    def _is_whole(self, storage: Stored) -> bool:
        try:
            start, size, checksum = self._places(storage)
        except ValueError:
            return True  # named with its tensor
        data: Any = self._bytes[start : start + size].numpy()
        return checksum is None or zlib.crc32(data) == checksum

    def tensor(self, view: View) -> Tensor:
        """A tensor, whose memory is the file's.

        Args:
            view: the tensor as the pickle describes it.

        Raises:
            ValueError: it is larger than its storage or reaches out of it, or the storage is not as
                large as its entry.
        """
        numbers = self._all(view.storage, view.dtype)
        if min((view.offset, *view.size, *view.stride)) < 0:
            raise ValueError("it has a negative size, stride or offset")
        count, last = 1, view.offset
        for size, stride in zip(view.size, view.stride, strict=True):
            count, last = count * size, last + (size - 1) * stride
        if count == 0:
            return numbers.new_empty(view.size)
        if count > numbers.numel():
            raise ValueError("it is larger than its memory")
        if last >= numbers.numel():
            raise ValueError("it reaches out of its memory (out of bounds)")
        start = numbers.storage_offset() + view.offset
        return torch.as_strided(numbers, view.size, view.stride, start)

    def _all(self, storage: Stored, dtype: torch.dtype) -> Tensor:
        key = (storage.key, dtype)
        if key not in self._numbers:
            start, size, _ = self._places(storage)
            wanted = storage.numel * storage.dtype.itemsize
            if size != wanted:
                raise ValueError(
                    f"storage {storage.key[:99]} has {size} bytes, not as many as its "
                    f"{storage.dtype} need"
                )
            data = self._bytes[start : start + size]
            if size % dtype.itemsize:
                raise ValueError(f"storage {storage.key[:99]} is cut within a number")
            # torch aligns its storages; others need not.
            if data.data_ptr() % max(dtype.itemsize, 1):
                data = data.clone()
            self._numbers[key] = data.view(dtype)
        return self._numbers[key]


def read_zip(path: Path, known: Callable[[str, str], Any] | None = None) -> tuple[Any, Storages]:
    """The object in a zip of torch, and its tensors' memory.

    Args:
        path: a zip that `entry_names` let pass.
        known: see `InertUnpickler`.

    Raises:
        Exception: nearly any, for a damaged file.
    """
    limit = largest_pickle(path.stat().st_size)
    with open_zip(path) as archive, open(path, "rb") as file:
        names = archive.namelist()
        root = min((n for n in names if n.endswith("/data.pkl")), key=len, default="")
        if not root:
            raise ValueError("it has no data.pkl")
        root = root.removesuffix("data.pkl")
        if f"{root}byteorder" in names and read_entry(archive, f"{root}byteorder", 9) != b"little":
            raise ValueError("its numbers are big-endian")
        data = read_entry(archive, f"{root}data.pkl", limit)
        if len(data) > limit:
            raise ValueError(
                f"its pickle has more than {limit:,} bytes. Tensors lie beside a pickle, arrays of "
                "NumPy within it: write tensors"
            )
        content, storages = unpickle(data, known)
        places = {key: _place(archive, f"{root}data/{key}", file) for key in storages}

    def place(storage: Stored) -> Entry:
        found = places[storage.key]
        if isinstance(found, ValueError):
            raise found
        return found

    return content, Storages(path, place)


def read_legacy(path: Path) -> tuple[Any, Storages]:
    """The same of a file of torch before 1.6.

    Args:
        path: a file that begins with `LEGACY_START`.

    Raises:
        Exception: nearly any, for a damaged file.
    """
    size = path.stat().st_size
    with open(path, "rb") as file:
        has_module = shows_module(file.read(largest_pickle(size)))
        file.seek(0)
        pickles = _Bounded(file, largest_pickle(size))
        _magic, version, system = (InertUnpickler(pickles).load() for _ in range(3))
        if version != _LEGACY_VERSION:
            raise ValueError(f"it is of version {version!r}")
        if isinstance(system, Mapping) and system.get("little_endian") is False:
            raise ValueError("its numbers are big-endian")
        unpickler = InertUnpickler(pickles, has_module=has_module)
        content = unpickler.load()
        keys = InertUnpickler(pickles).load()
        places: dict[str, Entry] = {}
        start = file.tell()
        for key in map(str, keys):
            if key not in unpickler.storages or key in places:
                raise ValueError(f"it has a storage {key[:99]!r} that no tensor is of")
            storage = unpickler.storages[key]
            file.seek(start)
            numel = int.from_bytes(file.read(8), "little", signed=True)
            wanted = storage.numel * storage.dtype.itemsize
            if numel != storage.numel or start + 8 + wanted > size:
                raise ValueError(f"storage {key[:99]} is not as large as it claims")
            places[key] = Entry(start + 8, wanted)
            start += 8 + wanted
        if missing := unpickler.storages.keys() - places.keys():
            raise ValueError(f"it lacks storage {min(missing)[:99]}")
    return content, Storages(path, lambda storage: places[storage.key])


def _place(archive: zipfile.ZipFile, name: str, file: io.BufferedReader) -> Entry | ValueError:
    """Where a storage lies, or why it does not: an optimizer's may be missing."""
    try:
        return locate(archive, name, file)
    except ValueError as error:
        return error


class _Bounded:
    """A file from which so many bytes can be read, one pickle after the other."""

    def __init__(self, file: io.BufferedReader, limit: int) -> None:
        self._file, self._limit, self._left = file, limit, limit

    def read(self, size: int) -> bytes:
        self._left -= size
        if self._left < 0:
            raise pickle.UnpicklingError(f"its pickles have more than {self._limit:,} bytes")
        return self._file.read(size)

    def readline(self) -> bytes:
        line = self._file.readline(self._left + 1)
        self._left -= len(line)
        if self._left < 0:
            raise pickle.UnpicklingError(f"its pickles have more than {self._limit:,} bytes")
        return line
