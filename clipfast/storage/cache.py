"""Shards of stores on a local disk, bounded, shared by the processes of a node.

    DIR/v1/objects/ID.tar    a shard; ID is a digest of its path, size and version
    DIR/v1/objects/ID-RANGES.part
                             ranges of it, by their digest, where a selection keeps little
    DIR/v1/locks/NAME        who holds it fetches a copy; the kernel frees it with its process
    DIR/v1/pins/NAME         copies that a living process needs next, which nobody removes
    DIR/v1/room.lock         held while sizes are summed and copies are removed

A copy appears by a rename, with its bytes on the disk. What a killed process leaves, a temporary
or its pins, is removed by the next one. Whoever reads one that is removed goes on reading it.
"""

import fcntl
import hashlib
import itertools
import os
import socket
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from clipfast.files import process_is_alive, remove_stale_in, whole_file, write_whole
from clipfast.storage import counting
from clipfast.storage.base import Reader, Stat
from clipfast.storage.copies import Copy, Part, Ranges
from clipfast.storage.failures import UnreachableError
from clipfast.storage.local import FileReader
from clipfast.storage.patience import unwanted

# Bytes per request, and requests at a time, while a shard is fetched.
_PART, _AT_ONCE = 8 << 20, 8
# Requests at a time for ranges, which are small: half of those that a rank has under way by
# default, so that batches are not kept waiting.
_RANGES_AT_ONCE = 32
_SUFFIXES = (".tar", ".part")


class Wanted(NamedTuple):
    """A copy that somebody needs.

    Attributes:
        path: of the shard in its store.
        stat: which version of it.
        part: which ranges of it; None: the whole.
    """

    path: str
    stat: Stat
    part: Part | None = None

    @property
    def size(self) -> int:
        """Bytes that the copy takes."""
        return self.stat.size if self.part is None else self.part.size


class Cache:
    """Copies of shards in a folder.

    Args:
        folder: on a disk of this machine; it is made.
        capacity: bytes that all copies in it take together, at most.

    Raises:
        OSError: the folder cannot be made, or its file system has no locks.
    """

    def __init__(self, folder: str, capacity: int) -> None:
        self.folder, self.capacity = Path(folder).absolute() / "v1", capacity
        self._objects, self._locks, self._pins = (
            self.folder / name for name in ("objects", "locks", "pins")
        )
        # Which ranges readers of this process look for, by the ID of their shard.
        self._parts: dict[str, tuple[str, ...]] = {}
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

    def find(self, path: str, stat: Stat, ranges: Sequence[tuple[int, int]]) -> Copy | None:
        """A copy that holds ranges of a shard, the whole one first; None where there is none.

        Args:
            path: of the shard in its store.
            stat: which version of it.
            ranges: offset and size of each.
        """
        whole = Wanted(path, stat)
        digests = self._parts.get(self._copy(whole).stem, ())
        for wanted in (whole, *(Wanted(path, stat, Part(digest, 0)) for digest in digests)):
            file = self._copy(wanted)
            with suppress(OSError):
                copy = self._open(file, wanted)
                if copy is not None and copy.holds(ranges):
                    # The least recently used goes first.
                    os.utime(file)
                    return copy
        return None

    def _open(self, file: Path, wanted: Wanted) -> Copy | None:
        reader = FileReader(str(file))
        if wanted.part is not None:
            return Copy.of_part(reader, wanted.part.digest)
        return Copy(reader) if reader.size() == wanted.stat.size else None

    def expect(self, wanted: Wanted) -> None:
        """Let readers of this process look for a copy of ranges, where there is no whole one.

        Args:
            wanted: which ranges.
        """
        if wanted.part is not None:
            shard = self._copy(Wanted(wanted.path, wanted.stat)).stem
            known = self._parts.get(shard, ())
            self._parts[shard] = tuple(dict.fromkeys((wanted.part.digest, *known)))

    def has(self, wanted: Wanted) -> bool:
        """Whether there is a copy."""
        return self._copy(wanted).exists()

    def fetch(self, path: str, stat: Stat, reader: Reader, ranges: Ranges | None = None) -> bool:
        """Copy a shard, unless another process is at it or there is no room.

        Args:
            path: of the shard in its store.
            stat: which version of it.
            reader: reads that version, or fails.
            ranges: what is copied of it; None: the whole.

        Returns:
            Whether there is a copy now.

        Raises:
            OSError: it cannot be read or written.
            ValueError: the shard has changed.
        """
        wanted = Wanted(path, stat, None if ranges is None else ranges.part)
        copy = self._copy(wanted)
        with _locked(self._locks / copy.stem, wait=False) as mine:
            if not mine:
                return copy.exists()
            if copy.exists():
                return True
            with ExitStack() as stack:
                with self._room():
                    if not self._make_room(wanted.size):
                        return False
                    temporary = stack.enter_context(whole_file(copy, clean=False))
                    # What is on its way counts from now on.
                    os.truncate(temporary, wanted.size)
                stack.enter_context(counting.filling())
                with open(temporary, "r+b") as file:
                    file.write(b"" if ranges is None else ranges.head)
                    for data in _bytes_of(reader, stat.size, ranges):
                        file.write(data)
                        counting.add(copied=len(data))
            return True

    def held(self) -> int:
        """Bytes that all copies take now, those that are on their way among them."""
        return sum(size for _, size, _ in self._found())

    def pin(self, name: str, wanted: Iterable[Wanted]) -> None:
        """Say which copies are needed next; it replaces what was said under this name.

        Args:
            name: of whoever needs them, within this process.
            wanted: they.
        """
        ids = "".join(f"{self._copy(each).stem}\n" for each in wanted)
        write_whole(self._pin_file(name), ids.encode(), sync=False)

    def unpin(self, name: str) -> None:
        """Take back what `pin` said."""
        with suppress(FileNotFoundError):
            self._pin_file(name).unlink()

    def _pin_file(self, name: str) -> Path:
        return self._pins / f"{os.getpid()}@{socket.gethostname()}@{name}"

    def _copy(self, wanted: Wanted) -> Path:
        path, stat, part = wanted
        # A time tells versions apart only where there is no ETag.
        version = stat.etag or str(stat.modified)
        text = "\n".join((path, str(stat.size), version))
        shard = hashlib.sha256(text.encode()).hexdigest()[:32]
        return self._objects / (f"{shard}.tar" if part is None else f"{shard}-{part.digest}.part")

    @contextmanager
    def _room(self) -> Iterator[None]:
        with _locked(self.folder / "room.lock", wait=True):
            yield

    def _make_room(self, size: int) -> bool:
        """Remove copies until one of `size` bytes fits; false where those that are left are needed.

        Held by `_room`.
        """
        remove_stale_in(self._objects)
        held = self._found()
        total = sum(bytes_ for _, bytes_, _ in held)
        pinned = self._pinned()
        free = [
            (bytes_, path)
            for _, bytes_, path in sorted(held)
            if path.suffix in _SUFFIXES and path.stem not in pinned
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
        """Copies that living processes need."""
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


def _bytes_of(reader: Reader, size: int, ranges: Ranges | None) -> Iterator[bytes]:
    """All bytes of a shard, or of ranges of it, in order, several requests at a time."""
    if ranges is None:
        requests = [[(at, min(_PART, size - at))] for at in range(0, size, _PART)]
        at_once = _AT_ONCE
    else:
        requests, at_once = ranges.requests(), _RANGES_AT_ONCE
    given_up = unwanted.get()
    # One by one: as one call, neighbours would be one request.
    under_way: deque[tuple[list[tuple[int, int]], Callable[[], list[bytes]]]] = deque()
    waiting = iter(requests)
    while True:
        for request in itertools.islice(waiting, at_once - len(under_way)):
            under_way.append((request, reader.start_many(request)))
        if not under_way:
            return
        if given_up is not None and given_up.is_set():
            raise UnreachableError("nobody waits for this shard any more")
        request, wait = under_way.popleft()
        for (_, expected), data in zip(request, wait(), strict=True):
            if len(data) != expected:
                raise OSError(f"a shard gave {len(data):,} of {expected:,} bytes")
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
