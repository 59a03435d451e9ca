"""Objects in stores: s3, gs, az and plain web servers, through obstore.

Every answer is checked: its range, its length, and that it is of the object that was opened. What
fails in passing is asked for again (`clipfast.storage.patience`).
"""

import io
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial
from typing import Any, TypeVar

from clipfast.storage.base import Listed, Reader, Stat, Storage, Stream
from clipfast.storage.cache import Cache, read_copy
from clipfast.storage.clients import Place, client_of, place_of
from clipfast.storage.failures import (
    ChangedError,
    PassingError,
    RefusedError,
    asks_for_credentials,
    changed,
    reason_of,
    refused,
    status_of,
)
from clipfast.storage.globs import glob_paths
from clipfast.storage.local import FileReader
from clipfast.storage.options import StoreOptions
from clipfast.storage.paths import join, split
from clipfast.storage.patience import Patience
from clipfast.storage.pool import submit

T = TypeVar("T")

# Ranges with a gap of up to so many bytes between them are one request: image and caption of a
# sample lie 512 bytes apart, and a request takes longer than the bytes of the gap.
_GAP = 64 << 10
# Bytes per request of a stream.
_STREAM_BLOCK = 8 << 20
# What asking again does not change.
_FINAL = frozenset((400, 401, 403, 405, 410, 411, 416, 501))


class ObjectReader(Reader):
    """One object as it was when it was opened. Threads share it.

    Args:
        storage: where it is.
        path: the object.
        stat: what it is; each answer is compared with it.
    """

    def __init__(self, storage: "ObjectStorage", path: str, stat: Stat) -> None:
        super().__init__(storage, path)
        self._store, self._stat = storage, stat
        self._copied: FileReader | None = None

    def stat(self) -> Stat:
        """What was opened."""
        return self._stat

    def size(self) -> int:
        """See `Reader.size`."""
        return self._stat.size

    def read_at(self, offset: int, size: int) -> bytes:
        """See `Reader.read_at`.

        Raises:
            ChangedError: the object is not the one that was opened.
            UnreachableError: the store does not answer.
        """
        stop = min(offset + size, self._stat.size)
        if stop <= offset:
            return b""
        if (found := self._from_cache([(offset, stop - offset)])) is not None:
            return found[0]
        return self._store.fetch(self._path, offset, stop, self._stat)

    def start_many(self, ranges: Sequence[tuple[int, int]]) -> Callable[[], list[bytes]]:
        """See `Reader.start_many`. Neighbours are one request; all are under way at once."""
        stop = self._stat.size
        inside = [(at, max(0, min(size, stop - at))) for at, size in ranges]
        if (found := self._from_cache(inside)) is not None:
            return lambda: found
        joined = join_ranges(ranges, _GAP)
        in_flight = self._store.options.in_flight
        # Says so where this process cannot ask: the threads of a forked one are not there.
        client_of(place_of(self._path).root, self._store.options)
        futures = [submit(in_flight, self.read_at, at, size) for at, size, _ in joined]
        return partial(_collect, ranges, joined, futures)

    def _from_cache(self, ranges: Sequence[tuple[int, int]]) -> list[bytes] | None:
        """Ranges of the copy in the cache; None where there is none."""
        if self._store.cache is None:
            return None
        if self._copied is None:
            self._copied = self._store.cache.find(self._path, self._stat)
        if self._copied is None:
            return None
        found = read_copy(self._copied, ranges)
        if found is None:
            self._copied = None
        return found

    def stream(self) -> io.BufferedReader:
        """See `Reader.stream`."""
        return io.BufferedReader(Stream(self), _STREAM_BLOCK)


def join_ranges(ranges: Sequence[tuple[int, int]], gap: int) -> list[tuple[int, int, list[int]]]:
    """Ranges that lie close together, as one.

    Args:
        ranges: (offset, size), in any order; they may overlap.
        gap: bytes between two of them that are read too.

    Returns:
        (offset, size, positions in `ranges`), by offset.
    """
    joined: list[tuple[int, int, list[int]]] = []
    for number in sorted(range(len(ranges)), key=lambda i: ranges[i]):
        offset, size = ranges[number]
        if joined and offset <= joined[-1][0] + joined[-1][1] + gap:
            at, length, numbers = joined.pop()
            stop = max(at + length, offset + size)
            joined.append((at, stop - at, [*numbers, number]))
        else:
            joined.append((offset, size, [number]))
    return joined


def _collect(
    ranges: Sequence[tuple[int, int]],
    joined: Sequence[tuple[int, int, list[int]]],
    futures: Sequence["Future[bytes]"],
) -> list[bytes]:
    parts = [b""] * len(ranges)
    try:
        for (at, _, numbers), future in zip(joined, futures, strict=True):
            data = future.result()
            for number in numbers:
                offset, size = ranges[number]
                parts[number] = data[offset - at : offset - at + size]
    finally:
        for future in futures:
            future.cancel()
    return parts


class ObjectStorage(Storage):
    """The objects of one scheme: s3, gs, az, http or https.

    Args:
        scheme: of its paths.
        options: how stores are reached.
        cache: copies of shards on a disk of this machine.
    """

    is_remote = True

    def __init__(
        self, scheme: str, options: StoreOptions | None = None, cache: Cache | None = None
    ) -> None:
        self.cache = cache
        self.scheme, self.options = scheme, options or StoreOptions()
        self._patience = Patience(self.options.patience)

    @property
    def _is_web(self) -> bool:
        return self.scheme in ("http", "https")

    def list(self, folder: str) -> Sequence[Listed]:
        """See `Storage.list`.

        Raises:
            ValueError: a plain web server, which lists nothing.
            OSError: the store does not answer, or says no.
        """
        if self._is_web:
            raise ValueError(
                f"{folder}: a web server lists nothing, so '*' finds no shard there. Write a brace "
                f"range such as '{folder}/{{00000..00099}}.tar'"
            )
        if folder.endswith("://"):
            return []
        place = place_of(folder)
        answer = self._ask(folder, folder, lambda o, c: o.list_with_delimiter(c, place.key or None))
        found: dict[str, Listed] = {}
        for prefix in answer["common_prefixes"]:
            name = split(prefix.rstrip("/"))[1]
            found[name] = Listed(name, is_folder=True, is_file=False)
        for each in answer["objects"]:
            name = split(each["path"])[1]
            # Some tools mark a folder by an empty object of its own name.
            if name and each["path"].rstrip("/") != place.key:
                found[name] = Listed(name, is_folder=name in found)
        return list(found.values())

    def stat(self, path: str) -> Stat:
        """See `Storage.stat`."""
        place = place_of(path)
        if not place.key:
            raise FileNotFoundError(f"{path}: a bucket is no object")
        return _stat_of(self._ask(path, path, lambda o, c: o.head(c, place.key)))

    def size(self, path: str) -> int:
        """See `Storage.size`."""
        return self.stat(path).size

    def modified(self, path: str) -> int:
        """See `Storage.modified`."""
        return self.stat(path).modified

    def read_at(self, path: str, offset: int, size: int) -> bytes:
        """See `Storage.read_at`."""
        return self.open(path).read_at(offset, size)

    def open(self, path: str, stat: Stat | None = None) -> ObjectReader:
        """See `Storage.open`.

        Args:
            path: the object.
            stat: what it was when it was opened before; None: what it is now.
        """
        return ObjectReader(self, path, stat or self.stat(path))

    def fetch(self, path: str, start: int, stop: int, stat: Stat) -> bytes:
        """Bytes of an object that has not changed.

        Args:
            path: the object.
            start: first byte.
            stop: behind the last one; within the object.
            stat: what it was when it was opened.

        Raises:
            ChangedError: it is another one now.
            UnreachableError: the store does not answer for as long as the run waits.
        """
        what = f"shard {path}, bytes {start:,} to {stop:,}"
        return self._patience.call(partial(self._fetch, path, start, stop, stat), what)

    def _fetch(self, path: str, start: int, stop: int, stat: Stat) -> bytes:
        place = place_of(path)
        options: dict[str, Any] = {"range": (start, stop)}
        if stat.etag:
            options["if_match"] = stat.etag
        try:
            answer, data = self._once(path, partial(_get, key=place.key, options=options))
        except ChangedError:
            self._compare(path, stat, self._head(path, place))
            raise PassingError("412, and the object has not changed") from None
        now = _stat_of(answer.meta)
        if now.differs(stat):
            # Another word for a moment, from a server behind the same name, is no change.
            self._compare(path, stat, self._head(path, place))
            raise PassingError(
                f"an answer with the ETag {now.etag}, which the object does not have"
            )
        if answer.range != (start, stop) or len(data) != stop - start:
            raise PassingError(f"the answer has {len(data):,} of {stop - start:,} bytes")
        return data

    def _compare(self, path: str, stat: Stat, now: Stat) -> None:
        if now.size != stat.size:
            raise changed(path, "size", f"{stat.size:,}", f"{now.size:,}")
        if now.etag != stat.etag:
            raise changed(path, "ETag", stat.etag, now.etag)
        if now.differs(stat):
            raise changed(path, "time", stat.modified, now.modified)

    def _head(self, path: str, place: Place) -> Stat:
        return _stat_of(self._once(path, lambda o, c: o.head(c, place.key)))

    def write_atomic(self, path: str, data: bytes) -> None:
        """See `Storage.write_atomic`. A store shows an object once all of it is there."""
        self._require_writable(path)
        place = place_of(path)
        self._ask(
            path, f"{path} ({len(data):,} bytes to write)", partial(_put, key=place.key, data=data)
        )

    def remove(self, path: str) -> None:
        """See `Storage.remove`."""
        self._require_writable(path)
        place = place_of(path)
        try:
            self._ask(path, path, lambda o, c: o.delete(c, place.key))
        except FileNotFoundError:
            return

    def is_file(self, path: str) -> bool:
        """See `Storage.is_file`. A store that does not answer is an error, not a no."""
        try:
            self.stat(path)
        except FileNotFoundError:
            return False
        return True

    def is_folder(self, path: str) -> bool:
        """See `Storage.is_folder`. Nobody knows what a web server has below a path."""
        return not self._is_web and bool(self.list(path))

    def glob(self, pattern: str) -> Sequence[tuple[str, bool]]:
        """See `Storage.glob`. A folder that cannot be listed is an error here."""
        return glob_paths(self, pattern, strict=True)

    def present(self, paths: Sequence[str]) -> dict[str, bool]:
        """See `Storage.present`. A web server is asked for each, many at a time."""
        if not self._is_web:
            return super().present(paths)
        futures = [submit(self.options.in_flight, self.is_file, path) for path in paths]
        return {path: True for path, future in zip(paths, futures, strict=True) if future.result()}

    def check_writable(self, folder: str) -> None:
        """See `Storage.check_writable`."""
        self._require_writable(folder)
        probe = join(folder, ".clipfast-writable")
        self.write_atomic(probe, b"")
        self.remove(probe)

    def _require_writable(self, path: str) -> None:
        if self._is_web:
            raise RefusedError(f"{path}: nothing can be written over {self.scheme}")

    def _ask(self, path: str, what: str, act: Callable[[Any, Any], T]) -> T:
        return self._patience.call(partial(self._once, path, act), what)

    def _once(self, path: str, act: Callable[[Any, Any], T]) -> T:
        """One request, its error told apart: what passes, and what does not."""
        import obstore
        from obstore.exceptions import (
            BaseError,
            PermissionDeniedError,
            PreconditionError,
            UnauthenticatedError,
        )

        client = client_of(place_of(path).root, self.options)
        try:
            return act(obstore, client)
        except FileNotFoundError as error:
            raise FileNotFoundError(f"{path}: there is no such object") from error
        except PreconditionError as error:
            raise ChangedError(path) from error
        except (PermissionDeniedError, UnauthenticatedError) as error:
            raise refused(path, f"access denied ({reason_of(error)})") from error
        except BaseError as error:
            if status_of(error) in _FINAL and "RequestTimeout" not in str(error):
                raise refused(path, f"the store refuses ({reason_of(error)})") from error
            if asks_for_credentials(error):
                raise refused(path, "no credentials were found") from error
            raise PassingError(reason_of(error)) from error


def _get(obstore: Any, client: Any, key: str, options: dict[str, Any]) -> tuple[Any, bytes]:
    answer = obstore.get(client, key, options=options)
    return answer, bytes(answer.bytes())


def _put(obstore: Any, client: Any, key: str, data: bytes) -> Any:
    return obstore.put(client, key, data)


def _stat_of(meta: Any) -> Stat:
    etag = meta.get("e_tag")
    # A weak one says that two objects mean the same, not that they have the same bytes.
    strong = etag if etag and not etag.startswith("W/") else None
    seconds = meta["last_modified"].timestamp()
    return Stat(int(meta["size"]), strong, round(seconds * 1e9))
