"""Whole shards of stores on a local disk, bounded, shared by the processes of a node.

    DIR/v1/objects/ID.tar    a shard; ID is a digest of its path, size and version
    DIR/v1/locks/ID          who holds it fetches the shard; the kernel frees it with its process
    DIR/v1/pins/NAME         shards that a living process needs next, which nobody removes
    DIR/v1/room.lock         held while sizes are summed and shards are removed

A shard appears by a rename, with its bytes on the disk. What a killed process leaves, a temporary
or its pins, is removed by the next one. Whoever reads a shard that is removed goes on reading it.
"""

import fcntl
import hashlib
import logging
import os
import socket
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from clipfast.files import process_is_alive, remove_stale_in, whole_file, write_whole
from clipfast.storage import counting
from clipfast.storage.base import Reader, Stat
from clipfast.storage.failures import UnreachableError
from clipfast.storage.local import FileReader
from clipfast.storage.patience import unwanted

# Bytes per request, and requests at a time, while a shard is fetched.
_PART, _AT_ONCE = 8 << 20, 8

_log = logging.getLogger(__name__)


class Cache:
    """Copies of shards in a folder.

    Args:
        folder: on a disk of this machine; it is made.
        capacity: bytes that all shards in it take together, at most.

    Raises:
        OSError: the folder cannot be made, or its file system has no locks.
    """

    def __init__(self, folder: str, capacity: int) -> None:
        self.folder, self.capacity = Path(folder).absolute() / "v1", capacity
        self._objects, self._locks, self._pins = (
            self.folder / name for name in ("objects", "locks", "pins")
        )
        for each in (self._objects, self._locks, self._pins):
            each.mkdir(parents=True, exist_ok=True)
        try:
            with self._room():
                remove_stale_in(self._objects)
        except OSError as error:
            raise OSError(
                f"--data.cache {folder}: files cannot be locked there ({error.strerror}). Give a "
                "folder on a disk of this machine"
            ) from error

    def __reduce__(self) -> tuple[type["Cache"], tuple[str, int]]:
        return Cache, (str(self.folder.parent), self.capacity)

    def find(self, path: str, stat: Stat) -> FileReader | None:
        """A reader of the copy of a shard; None where there is none.

        Args:
            path: of the shard in its store.
            stat: which version of it.
        """
        copy = self._copy(path, stat)
        try:
            reader = FileReader(str(copy))
            if reader.size() == stat.size:
                # The least recently used goes first.
                os.utime(copy)
                return reader
        except OSError:
            pass
        return None

    def has(self, path: str, stat: Stat) -> bool:
        """Whether there is a copy of a shard."""
        return self._copy(path, stat).exists()

    def fetch(self, path: str, stat: Stat, reader: Reader) -> bool:
        """Copy a shard, unless another process is at it or there is no room.

        Args:
            path: of the shard in its store.
            stat: which version of it.
            reader: reads that version, or fails.

        Returns:
            Whether there is a copy now.

        Raises:
            OSError: it cannot be read or written.
            ValueError: the shard has changed.
        """
        copy = self._copy(path, stat)
        with _locked(self._locks / copy.stem, wait=False) as mine:
            if not mine:
                return copy.exists()
            if copy.exists():
                return True
            with ExitStack() as stack:
                with self._room():
                    if not self._make_room(stat.size):
                        return False
                    temporary = stack.enter_context(whole_file(copy, clean=False))
                    # What is on its way counts from now on.
                    os.truncate(temporary, stat.size)
                stack.enter_context(counting.filling())
                with open(temporary, "r+b") as file:
                    for data in _parts(reader, stat.size):
                        file.write(data)
                        counting.add(copied=len(data))
            return True

    def held(self) -> int:
        """Bytes that all shards take now, those that are on their way among them."""
        return sum(size for _, size, _ in self._found())

    def pin(self, name: str, wanted: Iterable[tuple[str, Stat]]) -> None:
        """Say which shards are needed next; it replaces what was said under this name.

        Args:
            name: of whoever needs them, within this process.
            wanted: path and version of each.
        """
        ids = "".join(f"{self._copy(path, stat).stem}\n" for path, stat in wanted)
        write_whole(self._pin_file(name), ids.encode(), sync=False)

    def unpin(self, name: str) -> None:
        """Take back what `pin` said."""
        with suppress(FileNotFoundError):
            self._pin_file(name).unlink()

    def _pin_file(self, name: str) -> Path:
        return self._pins / f"{os.getpid()}@{socket.gethostname()}@{name}"

    def _copy(self, path: str, stat: Stat) -> Path:
        # A time tells versions apart only where there is no ETag.
        version = stat.etag or str(stat.modified)
        text = "\n".join((path, str(stat.size), version))
        return self._objects / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.tar"

    @contextmanager
    def _room(self) -> Iterator[None]:
        with _locked(self.folder / "room.lock", wait=True):
            yield

    def _make_room(self, size: int) -> bool:
        """Remove shards until one of `size` bytes fits; false where those that are left are needed.

        Held by `_room`.
        """
        remove_stale_in(self._objects)
        held = self._found()
        total = sum(bytes_ for _, bytes_, _ in held)
        pinned = self._pinned()
        free = [
            (bytes_, path)
            for _, bytes_, path in sorted(held)
            if path.suffix == ".tar" and path.stem not in pinned
        ]
        if total - sum(bytes_ for bytes_, _ in free) + size > self.capacity:
            return False
        for bytes_, path in free:
            if total + size <= self.capacity:
                break
            path.unlink()
            total -= bytes_
        return True

    def _found(self) -> list[tuple[int, int, Path]]:
        """Time of the last use, bytes and path of each file."""
        found = []
        for path in self._objects.iterdir():
            with suppress(FileNotFoundError):
                stat = path.stat()
                found.append((stat.st_mtime_ns, stat.st_size, path))
        return found

    def _pinned(self) -> set[str]:
        """Shards that living processes need."""
        pinned: set[str] = set()
        for path in self._pins.iterdir():
            pid, _, rest = path.name.partition("@")
            if not pid.isdigit():
                continue
            here = rest.partition("@")[0] == socket.gethostname()
            with suppress(FileNotFoundError):
                if here and not process_is_alive(int(pid)):
                    path.unlink()
                else:
                    pinned |= set(path.read_text().split())
        return pinned


def _parts(reader: Reader, size: int) -> Iterator[bytes]:
    """All bytes in order, several requests at a time."""
    ranges = [(at, min(_PART, size - at)) for at in range(0, size, _PART)]
    given_up = unwanted.get()
    for first in range(0, len(ranges), _AT_ONCE):
        if given_up is not None and given_up.is_set():
            raise UnreachableError("nobody waits for this shard any more")
        # One by one: as one call, neighbours would be one request.
        started = [reader.start_many([each]) for each in ranges[first : first + _AT_ONCE]]
        for each, wait in zip(ranges[first:], started, strict=False):
            (data,) = wait()
            if len(data) != each[1]:
                raise OSError(f"a shard gave {len(data):,} of {each[1]:,} bytes")
            yield data


@contextmanager
def _locked(path: Path, *, wait: bool) -> Iterator[bool]:
    """Hold a lock; yields false where another process holds it and `wait` is not asked for."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
            return
        yield True
    finally:
        os.close(descriptor)


def read_copy(copy: FileReader, ranges: Sequence[tuple[int, int]]) -> list[bytes] | None:
    """Ranges of a copy; None where it does not give them, for whatever reason."""
    try:
        found = [copy.read_at(offset, size) for offset, size in ranges]
    except OSError as error:
        _log.warning("a cached shard cannot be read (%s); its store is asked", error)
        return None
    if any(len(data) != size for data, (_, size) in zip(found, ranges, strict=True)):
        return None
    return found
