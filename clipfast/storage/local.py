"""Local and mounted files: ``pread`` on descriptors that stay open, writes by rename."""

import os
import tempfile
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, suppress
from pathlib import Path

from clipfast.files import remove_stale_in, whole_file
from clipfast.storage.base import Listed, Reader, Stat, Storage, Writer

_FILE_URL = "file://"


class FileReader(Reader):
    """A descriptor. Its position is neither used nor moved, so that threads can share it."""

    def __init__(self, path: str) -> None:
        self._fd = -1
        self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def read_at(self, offset: int, size: int) -> bytes:
        """`size` bytes, whatever short reads the file system makes; fewer only at the end."""
        data = os.pread(self._fd, size, offset)
        while len(data) < size:
            more = os.pread(self._fd, size - len(data), offset + len(data))
            if not more:
                break
            data += more
        return data

    def size(self) -> int:
        """Bytes of the file."""
        return os.fstat(self._fd).st_size

    def close(self) -> None:
        """Close the descriptor."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    # Whoever drops a shared reader must not cut a read that is under way in another thread.
    __del__ = close


class _Dropped(Exception):
    """What ends the writing of a file that nobody wants any more."""


class FileWriter(Writer):
    """A file beside the final one, synced and renamed over it at `commit`.

    What goes wrong is an OSError that names the file and the space that is left.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        # Folders of many shards are cleaned once per run: see `remove_leftovers`.
        whole = whole_file(path, clean=False)
        self._file = open(whole.__enter__(), "wb")  # noqa: SIM115
        self._whole: AbstractContextManager[Path] | None = whole

    def write(self, data: bytes) -> None:
        """Append `data`."""
        try:
            self._file.write(data)
        except OSError as error:
            self._end(error)

    def commit(self) -> None:
        """Put the file in place; its bytes are on the disk by then."""
        try:
            self._file.close()
        except OSError as error:
            self._end(error)
        self._end(None)

    def abort(self) -> None:
        """Delete what was written. After `commit` it does nothing."""
        with suppress(OSError):
            self._file.close()
        with suppress(_Dropped):
            self._end(_Dropped())

    def _end(self, error: Exception | None) -> None:
        whole, self._whole = self._whole, None
        if whole is None:
            return
        if error is None:
            whole.__exit__(None, None, None)
        elif not whole.__exit__(type(error), error, error.__traceback__):
            raise error


class FileStorage(Storage):
    """The files of this machine."""

    def list(self, folder: str) -> Sequence[Listed]:
        """See `Storage.list`. Links count as what they point to."""
        try:
            with os.scandir(folder or ".") as entries:
                return [Listed(e.name, _is(e.is_dir), _is(e.is_file)) for e in entries]
        except (FileNotFoundError, NotADirectoryError):
            return []

    def size(self, path: str) -> int:
        """See `Storage.size`."""
        return os.stat(path).st_size

    def modified(self, path: str) -> int:
        """See `Storage.modified`."""
        return os.stat(path).st_mtime_ns

    def read_at(self, path: str, offset: int, size: int) -> bytes:
        """See `Storage.read_at`."""
        with self.open(path) as reader:
            return reader.read_at(offset, size)

    def read(self, path: str) -> bytes:
        """See `Storage.read`. Pipes can be read too, which have no size."""
        with open(path, "rb") as file:
            return file.read()

    def open(self, path: str, stat: Stat | None = None) -> FileReader:
        """See `Storage.open`."""
        return FileReader(path)

    def create(self, path: str) -> FileWriter:
        """See `Storage.create`."""
        return FileWriter(path)

    def write_atomic(self, path: str, data: bytes) -> None:
        """See `Storage.write_atomic`."""
        writer = self.create(path)
        try:
            writer.write(data)
            writer.commit()
        finally:
            writer.abort()

    def remove(self, path: str) -> None:
        """See `Storage.remove`."""
        try:
            os.remove(path)
        except FileNotFoundError:
            return

    def exists(self, path: str) -> bool:
        """See `Storage.exists`."""
        return os.path.exists(path)

    def is_file(self, path: str) -> bool:
        """See `Storage.is_file`."""
        return os.path.isfile(path)

    def is_folder(self, path: str) -> bool:
        """See `Storage.is_folder`; an empty folder is one."""
        return os.path.isdir(path)

    def target(self, path: str) -> str:
        """See `Storage.target`."""
        return os.path.realpath(path)

    def make_folder(self, folder: str) -> None:
        """See `Storage.make_folder`."""
        os.makedirs(folder, exist_ok=True)

    def remove_folder(self, folder: str) -> None:
        """See `Storage.remove_folder`."""
        with suppress(OSError):
            os.rmdir(folder)

    def check_writable(self, folder: str) -> None:
        """See `Storage.check_writable`."""
        with tempfile.TemporaryFile(dir=folder or "."):
            pass

    def remove_leftovers(self, folder: str) -> None:
        """See `Storage.remove_leftovers`."""
        remove_stale_in(folder or ".")

    def resolve(self, path: str) -> str:
        """The path with ``~`` replaced and without ``file://``."""
        return os.path.expanduser(path.removeprefix(_FILE_URL))

    def identity(self, path: str) -> str:
        """The absolute path."""
        return os.path.abspath(path)

    def start(self) -> str:
        """The working directory."""
        return os.getcwd()


def _is(ask: Callable[[], bool]) -> bool:
    """The answer; no for a link that leads to itself or where nobody may look."""
    try:
        return ask()
    except OSError:
        return False
