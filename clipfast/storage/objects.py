"""Objects in stores: s3, gs, az and plain web servers, through obstore.

Every answer is checked: its range, its length, and that it is of the object that was opened. What
fails in passing is asked for again (`clipfast.storage.patience`).
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, TypeVar

from clipfast.storage import counting
from clipfast.storage.base import Listed, Stat
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
from clipfast.storage.paths import join, split
from clipfast.storage.pool import submit
from clipfast.storage.remote import RemoteStorage

T = TypeVar("T")

# Parts of one object that are sent together; each is in memory meanwhile.
_PARTS_TOGETHER = 8
# So many objects of one folder are better listed than asked for one by one.
_WORTH_A_LISTING = 32
# Behind the end of any object.
_EVERYTHING = 1 << 40
# What asking again does not change.
_FINAL = frozenset((400, 401, 403, 405, 410, 411, 416, 501))


class ObjectStorage(RemoteStorage):
    """The objects of one scheme: s3, gs, az, http or https.

    Args:
        scheme: of its paths.
        options: how stores are reached.
        cache: copies of shards on a disk of this machine.
    """

    @property
    def _is_web(self) -> bool:
        return self.scheme in ("http", "https")

    @property
    def asks_for_many(self) -> bool:
        """See `RemoteStorage`. Of a web server, caches on the way may show several versions at a
        time: each of its answers is compared."""
        return not self._is_web

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
        place, answer = place_of(folder), self._listing(folder)
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

    def _listing(self, folder: str) -> Any:
        key = place_of(folder).key or None
        return self._ask(folder, folder, lambda o, c: o.list_with_delimiter(c, key))

    def stats(self, paths: Sequence[str]) -> dict[str, Stat]:
        """See `Storage.stats`. Where many are in one folder, its listing says all of them."""
        folders: dict[str, set[str]] = {}
        for path in paths:
            folders.setdefault(split(path)[0], set()).add(path)
        found: dict[str, Stat] = {}
        alone: set[str] = set()
        for folder, inside in folders.items():
            if self._is_web or len(inside) < _WORTH_A_LISTING:
                alone |= inside
                continue
            for each in self._listing(folder)["objects"]:
                path = join(folder, split(each["path"])[1])
                if path in inside:
                    found[path] = _stat_of(each)
        tasks = [(path, submit(self.options.in_flight, self._known, path)) for path in alone]
        known = {path: task.result() for path, task in tasks}
        return found | {path: stat for path, stat in known.items() if stat is not None}

    def _known(self, path: str) -> Stat | None:
        try:
            return self.stat(path)
        except FileNotFoundError:
            return None

    def stat(self, path: str) -> Stat:
        """See `Storage.stat`."""
        place = place_of(path)
        if not place.key:
            raise FileNotFoundError(f"{path}: a bucket is no object")
        return _stat_of(self._ask(path, path, lambda o, c: o.head(c, place.key)))

    def read(self, path: str) -> bytes:
        """See `Storage.read`. One request."""
        return self.read_start(path, _EVERYTHING)

    def read_start(self, path: str, size: int) -> bytes:
        """See `Storage.read_start`. One request."""
        try:
            return self._patience.call(partial(self._begin, path, size), f"the start of {path}")
        except RefusedError:
            # An empty object has no range.
            if self.stat(path).size:
                raise
            return b""

    def _begin(self, path: str, size: int) -> bytes:
        options = {"range": (0, size)}
        answer, data = self._once(path, partial(_get, key=place_of(path).key, options=options))
        # A range says how large the whole is, so that one that was cut is noticed.
        expected = min(size, int(answer.meta["size"]))
        if tuple(answer.range) != (0, expected) or len(data) != expected:
            raise PassingError(f"the answer has {len(data):,} of {expected:,} bytes")
        return data

    def require_answers(self, path: str) -> None:
        """See `RemoteStorage.require_answers`: threads of a process that forks are not there."""
        client_of(place_of(path).root, self.options)

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

    def fetch_unchecked(self, path: str, ranges: Sequence[tuple[int, int]]) -> Sequence[bytes]:
        """See `clipfast.storage.together`."""
        with counting.waiting():
            return self._once(path, partial(_get_many, key=place_of(path).key, ranges=ranges))

    def is_still(self, path: str, stat: Stat) -> bool:
        """See `clipfast.storage.together`. One attempt."""
        try:
            with counting.waiting():
                return not self._head(path, place_of(path)).differs(stat)
        except (PassingError, ChangedError, OSError):
            return False

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

    def put_blocks(
        self, path: str, blocks: Callable[[], Iterator[bytes]], size: int, part: int
    ) -> str | None:
        """See `Storage.put_blocks`. A part that fails is sent again by itself."""
        self._require_writable(path)
        what = f"{path} ({size:,} bytes to write)"
        key = place_of(path).key
        if size <= part:
            act = partial(_put_small, key=key, blocks=blocks)
        else:
            act = partial(_put_parts, key=key, blocks=blocks, part=part)
        return self._patience.call(partial(self._once, path, act, retries=True), what)

    def remove(self, path: str) -> None:
        """See `Storage.remove`."""
        self._require_writable(path)
        place = place_of(path)
        try:
            self._ask(path, path, lambda o, c: o.delete(c, place.key))
        except FileNotFoundError:
            return

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

    def _once(self, path: str, act: Callable[[Any, Any], T], *, retries: bool = False) -> T:
        """One request, its error told apart: what passes, and what does not."""
        import obstore
        from obstore.exceptions import (
            BaseError,
            PermissionDeniedError,
            PreconditionError,
            UnauthenticatedError,
        )

        client = client_of(place_of(path).root, self.options, retries=retries)
        counting.add(requests=1)
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
    data = bytes(answer.bytes())
    counting.add(bytes=len(data))
    return answer, data


def _get_many(
    obstore: Any, client: Any, key: str, ranges: Sequence[tuple[int, int]]
) -> Sequence[bytes]:
    starts, sizes = zip(*ranges, strict=True)
    # What is near is one range by now, and what is not is not read over.
    found = obstore.get_ranges(client, key, starts=starts, lengths=sizes, coalesce=0)
    data = [bytes(each) for each in found]
    counting.add(bytes=sum(map(len, data)), requests=len(ranges) - 1)
    return data


def _put(obstore: Any, client: Any, key: str, data: bytes) -> Any:
    return obstore.put(client, key, data)


def _put_small(
    obstore: Any, client: Any, key: str, blocks: Callable[[], Iterator[bytes]]
) -> str | None:
    etag: str | None = obstore.put(client, key, b"".join(blocks()))["e_tag"]
    return etag


def _put_parts(
    obstore: Any, client: Any, key: str, blocks: Callable[[], Iterator[bytes]], part: int
) -> str | None:
    answer = obstore.put(client, key, blocks(), chunk_size=part, max_concurrency=_PARTS_TOGETHER)
    etag: str | None = answer["e_tag"]
    return etag


def _stat_of(meta: Any) -> Stat:
    etag = meta.get("e_tag")
    # A weak one says that two objects mean the same, not that they have the same bytes.
    strong = etag if etag and not etag.startswith("W/") else None
    # Azure's listings leave out the quotes that its answers have.
    if strong and not strong.startswith('"'):
        strong = f'"{strong}"'
    seconds = meta["last_modified"].timestamp()
    return Stat(int(meta["size"]), strong, round(seconds * 1e9))
