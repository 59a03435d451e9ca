"""Objects at places that fsspec knows: sftp, hdfs, memory and others, by the scheme of their path.

A place is held to its version by size and by what it says of a version: ETag, checksum or time. It
is looked at before and after a range is read where a read cannot be bound to a version.
"""

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any, TypeVar

from clipfast.storage import counting
from clipfast.storage.base import Listed, Stat
from clipfast.storage.cache import Cache
from clipfast.storage.failures import PassingError, RefusedError, changed
from clipfast.storage.globs import glob_paths
from clipfast.storage.options import StoreOptions
from clipfast.storage.paths import join, split
from clipfast.storage.remote import RemoteStorage

T = TypeVar("T")

_VERSIONS = ("ETag", "etag", "e_tag", "checksum", "md5", "md5Hash")
_TIMES = ("mtime", "last_modified", "LastModified", "modified", "updated", "created")


def elsewhere(
    scheme: str, options: StoreOptions | None = None, cache: Cache | None = None
) -> "FsspecStorage | None":
    """The storage of a scheme; None where fsspec is not installed or knows no such scheme.

    Args:
        scheme: of paths.
        options: how long is waited, and how many requests are under way.
        cache: copies of shards.

    Raises:
        ValueError: what fsspec needs for that scheme is not installed, or says no.
    """
    try:
        import fsspec
    except ImportError:
        return None
    if scheme not in fsspec.available_protocols():
        return None
    try:
        fsspec.get_filesystem_class(scheme)
    except ImportError as error:
        raise ValueError(
            f"{scheme}:// is read by fsspec, which lacks a package for it: {error}"
        ) from None
    return FsspecStorage(scheme, options, cache)


class FsspecStorage(RemoteStorage):
    """The objects of one scheme, through fsspec. Credentials are those of its configuration
    (``~/.config/fsspec``) and of the environment.

    Args:
        scheme: of its paths.
        options: how long is waited, and how many requests are under way.
        cache: copies of shards on a disk of this machine.
    """

    def list(self, folder: str) -> Sequence[Listed]:
        """See `Storage.list`."""

        def act(system: Any, path: str) -> Any:
            # What was listed before may have changed.
            system.invalidate_cache(path)
            return system.ls(path, detail=True)

        try:
            found = self._ask(folder, act)
        except (FileNotFoundError, NotADirectoryError):
            return []
        listed = []
        for each in found:
            name = split(str(each["name"]).rstrip("/"))[1]
            is_folder = each.get("type") == "directory"
            listed.append(Listed(name, is_folder=is_folder, is_file=not is_folder))
        return listed

    def stat(self, path: str) -> Stat:
        """See `Storage.stat`."""
        return self._ask(path, lambda system, inside: _stat_of(path, system.info(inside)))

    def _fetch(self, path: str, start: int, stop: int, stat: Stat) -> bytes:
        data = self._once(path, lambda system, inside: _part(system, inside, start, stop))
        counting.add(bytes=len(data))
        now = self._once(path, lambda system, inside: _stat_of(path, system.info(inside)))
        if now.differs(stat):
            what = "size" if now.size != stat.size else "version"
            raise changed(path, what, _version(stat), _version(now))
        if len(data) != stop - start:
            raise PassingError(f"the answer has {len(data):,} of {stop - start:,} bytes")
        return data

    def write_atomic(self, path: str, data: bytes) -> None:
        """See `Storage.write_atomic`: under another name first, where a place can rename.

        Raises:
            RefusedError: nothing can be written there.
        """
        folder, name = split(path)
        aside = join(folder, f".{name}.part")

        def act(system: Any, inside: str) -> None:
            beside = system._strip_protocol(aside)
            try:
                system.makedirs(system._parent(inside), exist_ok=True)
                system.pipe_file(beside, data)
                system.mv(beside, inside)
            except NotImplementedError as error:
                raise RefusedError(f"{path}: nothing can be written over {self.scheme}") from error

        self._ask(path, act)

    def remove(self, path: str) -> None:
        """See `Storage.remove`."""
        try:
            self._ask(path, lambda system, inside: system.rm_file(inside))
        except FileNotFoundError:
            return

    def glob(self, pattern: str) -> Sequence[tuple[str, bool]]:
        """See `Storage.glob`. A folder that cannot be listed is an error here."""
        return glob_paths(self, pattern, strict=True)

    def _ask(self, path: str, act: Callable[[Any, str], T]) -> T:
        return self._patience.call(lambda: self._once(path, act), path)

    def _once(self, path: str, act: Callable[[Any, str], T]) -> T:
        """One request, its error told apart: what passes, and what does not."""
        import fsspec

        counting.add(requests=1)
        try:
            # fsspec keeps one instance per place.
            system, inside = fsspec.url_to_fs(path)
            return act(system, inside)
        except FileNotFoundError as error:
            raise FileNotFoundError(f"{path}: there is no such object") from error
        except (NotADirectoryError, IsADirectoryError, RefusedError):
            raise
        except PermissionError as error:
            raise RefusedError(f"{path}: access denied ({error})") from error
        except (OSError, EOFError, TimeoutError) as error:
            raise PassingError(f"{type(error).__name__}: {error}".rstrip(": ")[:200]) from error


def _part(system: Any, path: str, start: int, stop: int) -> bytes:
    return bytes(system.cat_file(path, start=start, end=stop))


def _stat_of(path: str, info: Any) -> Stat:
    if info.get("type") == "directory":
        raise FileNotFoundError(f"{path}: a folder is no object")
    size = info.get("size")
    if size is None:
        raise RefusedError(f"{path}: its place does not tell its size, so no range can be read")
    version = next((str(info[name]) for name in _VERSIONS if info.get(name)), None)
    time = next((info[name] for name in _TIMES if info.get(name) is not None), 0)
    return Stat(int(size), version, _nanoseconds(time))


def _nanoseconds(time: Any) -> int:
    if isinstance(time, datetime):
        return round(time.timestamp() * 1e9)
    return round(time * 1e9) if isinstance(time, (int, float)) else 0


def _version(stat: Stat) -> str:
    return f"{stat.size:,}, {stat.etag or stat.modified}"
