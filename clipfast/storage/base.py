"""What a storage is: listings, random access, and writes that appear whole."""

import io
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from clipfast.storage.globs import glob_paths
from clipfast.storage.paths import split

# Bytes per request of a stream.
_STREAM_BLOCK = 1 << 20


@dataclass(frozen=True)
class Listed:
    """What a listing says of one name in a folder.

    Attributes:
        name: without the folder.
        is_folder: whether it holds other names.
        is_file: whether its bytes can be read; false for folders and dangling links.
    """

    name: str
    is_folder: bool = False
    is_file: bool = True


@dataclass(frozen=True)
class Stat:
    """What tells one version of an object from another.

    Attributes:
        size: bytes.
        etag: what the store calls this version; None where it says nothing that binds.
        modified: when it was last written, in nanoseconds.
    """

    size: int
    etag: str | None = None
    modified: int = 0

    def differs(self, other: "Stat") -> bool:
        """Whether these are two versions: by the ETag where both have one, else by the time."""
        if self.size != other.size:
            return True
        if self.etag is not None and other.etag is not None:
            return self.etag != other.etag
        return self.modified != other.modified


class Reader:
    """Random access to one object. Threads share it; it closes with its last reference.

    Args:
        storage: where the object is.
        path: the object.
    """

    def __init__(self, storage: "Storage", path: str) -> None:
        self._storage, self._path = storage, path

    def read_at(self, offset: int, size: int) -> bytes:
        """`size` bytes from `offset` on; fewer only where the object ends before."""
        return self._storage.read_at(self._path, offset, size)

    def start_many(self, ranges: Sequence[tuple[int, int]]) -> Callable[[], list[bytes]]:
        """Begin to read many ranges, where a storage can have many under way.

        Args:
            ranges: (offset, size), as for `read_at`.

        Returns:
            What waits for them: the bytes of each, in the order asked for.
        """
        return lambda: [self.read_at(offset, size) for offset, size in ranges]

    def read_many(self, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        """Many ranges; see `start_many`."""
        return self.start_many(ranges)()

    def stat(self) -> Stat | None:
        """Which version of the object is read, where the storage holds readers to it."""
        return None

    def size(self) -> int:
        """Bytes of the object."""
        return self._storage.size(self._path)

    def stream(self) -> io.BufferedReader:
        """The object from its first byte on, as a file to iterate over."""
        return io.BufferedReader(Stream(self), _STREAM_BLOCK)

    def close(self) -> None:
        """Give back what the reader holds, once no read is under way."""

    def __enter__(self) -> "Reader":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Stream(io.RawIOBase):
    """A reader's bytes in order."""

    def __init__(self, reader: Reader) -> None:
        self._reader, self._at = reader, 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._reader.read_at(self._at, len(buffer))
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)


class Writer:
    """Makes one object piece by piece. It appears whole at `commit`, or never.

    This one keeps the pieces in memory; a storage that can write a stream has its own.

    Args:
        storage: where the object goes.
        path: the object.
    """

    def __init__(self, storage: "Storage", path: str) -> None:
        self._storage, self._path = storage, path
        self._pieces: list[bytes] = []

    def write(self, data: bytes) -> None:
        """Append `data`."""
        self._pieces.append(data)

    def commit(self) -> None:
        """Put the object in place, over an older one of the same path."""
        self._storage.write_atomic(self._path, b"".join(self._pieces))

    def abort(self) -> None:
        """Drop what was written. After `commit` it does nothing."""
        self._pieces.clear()


class Storage(ABC):
    """What holds the objects of one scheme.

    The first six methods are what a new storage gives. The others follow from them; a storage
    overrides those that it does better. Paths come whole, with their scheme. Worker processes of
    index and pack get a pickled copy, which reads.

    Attributes:
        is_remote: a read takes so long that many should be under way at a time.
    """

    is_remote = False

    @abstractmethod
    def list(self, folder: str) -> Sequence[Listed]:
        """What lies directly in `folder`; nothing where there is no such folder."""

    @abstractmethod
    def size(self, path: str) -> int:
        """Bytes of an object.

        Raises:
            FileNotFoundError: there is none.
        """

    @abstractmethod
    def modified(self, path: str) -> int:
        """When an object was last written, in nanoseconds of one clock for the whole storage.

        Raises:
            FileNotFoundError: there is none.
        """

    @abstractmethod
    def read_at(self, path: str, offset: int, size: int) -> bytes:
        """`size` bytes of an object from `offset` on; fewer only where the object ends before.

        Raises:
            OSError: it cannot be read; ``FileNotFoundError`` where there is none.
        """

    @abstractmethod
    def write_atomic(self, path: str, data: bytes) -> None:
        """Make an object, or replace it. Whoever reads meanwhile sees the old or the new whole."""

    @abstractmethod
    def remove(self, path: str) -> None:
        """Delete an object; nothing happens where there is none."""

    def read(self, path: str) -> bytes:
        """All bytes of an object."""
        return self.read_at(path, 0, self.size(path))

    def read_start(self, path: str, size: int) -> bytes:
        """The first bytes of an object, whatever it was before.

        Args:
            path: the object.
            size: bytes, at most.
        """
        return self.read_at(path, 0, size)

    def stats(self, paths: Sequence[str]) -> dict[str, Stat]:
        """What objects are now; those that are not there are left out.

        Args:
            paths: many, in few folders.
        """
        found = {}
        for path in paths:
            try:
                found[path] = self.stat(path)
            except FileNotFoundError:
                continue
        return found

    def stat(self, path: str) -> Stat:
        """What an object is now.

        Raises:
            FileNotFoundError: there is none.
        """
        return Stat(self.size(path), None, self.modified(path))

    def open(self, path: str, stat: Stat | None = None) -> Reader:
        """An object for many reads.

        Args:
            path: the object.
            stat: what `Reader.stat` said when it was opened before: where the storage holds readers
                to a version, another one is an error.

        Raises:
            OSError: it cannot be read; ``FileNotFoundError`` where there is none.
        """
        return Reader(self, path)

    def create(self, path: str) -> Writer:
        """An object to be written piece by piece."""
        return Writer(self, path)

    def put_blocks(
        self, path: str, blocks: Callable[[], Iterator[bytes]], size: int, part: int
    ) -> str | None:
        """Make an object of blocks, or replace it, as `write_atomic` does.

        Args:
            path: the object.
            blocks: gives them from the first on, anew for each attempt.
            size: bytes of all.
            part: bytes that go in one request, where the storage takes an object in parts.

        Returns:
            What the storage calls the object's content; None where it says nothing.
        """
        writer = self.create(path)
        try:
            for block in blocks():
                writer.write(block)
            writer.commit()
        finally:
            writer.abort()
        return None

    def remove_folder(self, folder: str) -> None:
        """Remove an empty folder, where a storage has such."""
        return

    def exists(self, path: str) -> bool:
        """Whether there is an object or a folder of this path."""
        return self.is_file(path) or self.is_folder(path)

    def is_file(self, path: str) -> bool:
        """Whether there is an object of this path."""
        try:
            self.size(path)
        except OSError:
            return False
        return True

    def is_folder(self, path: str) -> bool:
        """Whether something lies below `path`."""
        return bool(self.list(path))

    def present(self, paths: Sequence[str]) -> dict[str, bool]:
        """Which of `paths` are there, and whether each is an object.

        One listing per folder, instead of one look per path.

        Raises:
            OSError: a folder that is there cannot be listed.
        """
        listings: dict[str, dict[str, bool]] = {}
        found = {}
        for path in paths:
            folder, name = split(path)
            if folder not in listings:
                listings[folder] = {each.name: each.is_file for each in self.list(folder)}
            if name in listings[folder]:
                found[path] = listings[folder][name]
        return found

    def target(self, path: str) -> str:
        """Where a path leads through links; equal for two paths to one folder."""
        return self.identity(path)

    def glob(self, pattern: str) -> Sequence[tuple[str, bool]]:
        """What a pattern with ``* ? [..] **`` matches: sorted paths, and whether each is a file."""
        return glob_paths(self, pattern)

    def make_folder(self, folder: str) -> None:
        """Make a folder and those above it, where a storage has folders."""
        return

    def check_writable(self, folder: str) -> None:
        """Fail early where nothing can be written into `folder`, if the storage can tell.

        Raises:
            OSError: with the reason.
        """
        return

    def remove_leftovers(self, folder: str) -> None:
        """Delete what killed writers left in `folder`, where a storage can have such."""
        return

    def resolve(self, path: str) -> str:
        """The path to use for what a person wrote, such as one with ``~``."""
        return path

    def identity(self, path: str) -> str:
        """Equal for two spellings of one path."""
        return path

    def start(self) -> str:
        """The folder that relative paths start from; "" where paths are never relative."""
        return ""
