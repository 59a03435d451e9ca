"""Whole files to a storage and back, each compared with its size and SHA-256.

What goes out is hashed while it is read here. What a store then says of it is its own digest, the
ETag, where that is the MD5 of the parts; where it is something else, the object is read back.
"""

import hashlib
import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path

from clipfast.storage import storage_of
from clipfast.storage.base import Reader, Storage
from clipfast.storage.paths import split
from clipfast.storage.patience import unwanted
from clipfast.storage.pool import submit

# Bytes of a read here, and of one there.
_BLOCK = 4 << 20
_RANGE = 8 << 20
# Ranges of one object that are under way together.
_TOGETHER = 8
# A part of an upload. S3 takes 10,000 of them at most.
_PART, _MOST_PARTS = 16 << 20, 10_000
_MEBIBYTE = 1 << 20

Moved = Callable[[int], None]


class WrongContentError(ValueError):
    """Bytes are not those that were to be copied; the message names the file or object."""


def send(source: Path, path: str, size: int, sha256: str, moved: Moved | None = None) -> None:
    """Copy a file to a storage; the object appears whole, or not at all.

    Args:
        source: the file.
        path: of the object; an older one is replaced.
        size: bytes that the file must have.
        sha256: of its content, in hexadecimal digits.
        moved: hears of bytes that were read here.

    Raises:
        WrongContentError: the file has other content, and no object was made; or the object has.
        OSError: the file cannot be read, or the storage does not answer for as long as it is waited
            for, or says no.
    """
    storage = storage_of(path)
    part = part_size(size)
    parts: list[bytes] = []

    def blocks() -> Iterator[bytes]:
        # Afresh for each attempt.
        parts.clear()
        return _checked(source, size, sha256, part, parts, moved)

    storage.make_folder(split(path)[0])
    etag = storage.put_blocks(path, blocks, size, part)
    found = storage.size(path)
    if found != size:
        raise WrongContentError(f"{path} has {found:,} bytes after {size:,} were written")
    if etag is None or etag.strip('"') not in _etags(parts):
        digest = _hash_of(storage, path, size, moved)
        if digest != sha256:
            raise WrongContentError(f"{path} has other content than was written")


def bring(path: str, target: Path, size: int, sha256: str, moved: Moved | None = None) -> None:
    """Copy an object to a file, many ranges at a time.

    Args:
        path: of the object.
        target: the file; what is there is written over.
        size: bytes that the object must have.
        sha256: of its content, in hexadecimal digits.
        moved: hears of bytes that came.

    Raises:
        WrongContentError: the object has other content; the file is of no use.
        FileNotFoundError: there is no such object.
        OSError: the file cannot be written, or the storage does not answer.
    """
    digest = hashlib.sha256()
    with storage_of(path).open(path) as reader, open(target, "wb") as file:
        found = reader.size()
        if found != size:
            raise WrongContentError(f"{path} has {found:,} bytes, {size:,} were saved")
        for data in ranges(reader, storage_of(path), size):
            digest.update(data)
            file.write(data)
            if moved is not None:
                moved(len(data))
        file.flush()
        os.fsync(file.fileno())
    if digest.hexdigest() != sha256:
        raise WrongContentError(f"{path} has other content than was saved")


def part_size(size: int) -> int:
    """Bytes of each part that a file is sent in.

    Args:
        size: of the file.
    """
    least = -(-size // _MOST_PARTS)
    return max(_PART, -(-least // _MEBIBYTE) * _MEBIBYTE)


def _checked(
    source: Path, size: int, sha256: str, part: int, parts: list[bytes], moved: Moved | None
) -> Iterator[bytes]:
    """The blocks of a file. The last one follows once all are known to be right."""
    digest, of_part, in_part = hashlib.sha256(), hashlib.md5(usedforsecurity=False), 0
    event = unwanted.get()
    held = b""
    try:
        opened = open(source, "rb", buffering=0)  # noqa: SIM115
    except FileNotFoundError as error:
        # Not to be taken for an object that is missing.
        raise WrongContentError(f"{source} is missing") from error
    with opened as file:
        while data := file.read(min(_BLOCK, part - in_part)):
            if event is not None and event.is_set():
                raise InterruptedError(f"{source}: nobody waits for it any more")
            digest.update(data)
            of_part.update(data)
            in_part += len(data)
            if in_part == part:
                parts.append(of_part.digest())
                of_part, in_part = hashlib.md5(usedforsecurity=False), 0
            if held:
                yield held
            held = data
            if moved is not None:
                moved(len(data))
        if in_part or not parts:
            parts.append(of_part.digest())
        read = file.tell()
    if (read, digest.hexdigest()) != (size, sha256):
        raise WrongContentError(f"{source} has other content than was saved")
    yield held


def _etags(parts: list[bytes]) -> set[str]:
    """What S3 and stores of its kind call an object that came in these parts."""
    together = hashlib.md5(b"".join(parts), usedforsecurity=False).hexdigest()
    names = {f"{together}-{len(parts)}"}
    return names | {parts[0].hex()} if len(parts) == 1 else names


def _hash_of(storage: Storage, path: str, size: int, moved: Moved | None) -> str:
    digest = hashlib.sha256()
    with storage.open(path) as reader:
        for data in ranges(reader, storage, size):
            digest.update(data)
            if moved is not None:
                moved(len(data))
    return digest.hexdigest()


def ranges(reader: Reader, storage: Storage, size: int) -> Iterator[bytes]:
    """An object's bytes in order, its next ranges under way.

    Args:
        reader: of the object.
        storage: where it is.
        size: of the object.
    """
    starts = range(0, size, _RANGE)
    if not storage.is_remote:
        for at in starts:
            yield reader.read_at(at, min(_RANGE, size - at))
        return
    under_way: deque[Future[bytes]] = deque()
    waiting = iter(starts)
    try:
        for at in waiting:
            count = min(_RANGE, size - at)
            under_way.append(submit(_TOGETHER, reader.read_at, at, count))
            if len(under_way) == _TOGETHER:
                yield under_way.popleft().result()
        while under_way:
            yield under_way.popleft().result()
    finally:
        for future in under_way:
            future.cancel()
