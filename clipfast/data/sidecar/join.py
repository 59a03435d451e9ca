"""Shards and tables of captions are joined once per machine, and found again by later runs."""

from __future__ import annotations

import contextvars
import fcntl
import hashlib
import json
import logging
import os
import tempfile
import time
import unicodedata
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from clipfast.data.fields import Fields, without_captions
from clipfast.data.report import printable
from clipfast.data.sidecar.arrow import arrow, parts
from clipfast.data.sidecar.joined import Joined, JoinedShard, JoinedWriter, open_joined
from clipfast.data.sidecar.lookup import Lookup
from clipfast.data.sidecar.options import Sidecar
from clipfast.data.sidecar.rows import SEPARATOR, joined_rows, read_rows, shard_name
from clipfast.data.table import Identity, identify, read_table
from clipfast.data.together import ALONE, Together
from clipfast.files import explain, remove_stale_in, whole_file
from clipfast.storage import storage_of
from clipfast.storage.paths import split

_VERSION = 1
_ENDING = ".captions"
# Shards that are read ahead. Where they are in stores, the time is the latency.
_AHEAD = 16
# A file that nobody has used for so long makes room.
_KEPT_SECONDS = 14 * 24 * 3600
_BEGINNING = 64 << 10

_log = logging.getLogger(__name__)


def usual_folder() -> str:
    """Where joined captions lie if nobody says: a folder of this user's below the temporary one."""
    return os.path.join(tempfile.gettempdir(), f"clipfast-{os.getuid()}", "captions")


def join(
    sidecar: Sidecar,
    shards: Sequence[str],
    fields: Fields,
    folder: str = "",
    *,
    known: Sequence[Identity] | None = None,
    together: Together = ALONE,
) -> Joined:
    """The captions of some shards, in the order of their rows.

    Args:
        sidecar: where captions stand.
        shards: paths of tars.
        fields: which members of them are image and caption.
        folder: where the result lies, on a disk of this machine; "": ``usual_folder``.
        known: what the shards are known by; None: they are looked at.
        together: ranks of the same tables, which one of them looks at. A collective then.

    Raises:
        ValueError: a table is no table or lacks a column, a key may belong to several samples, or
            no sample has a row; or pyarrow is not installed.
        OSError: a shard or table cannot be read, or the result cannot be written.
    """
    arrow()
    fields = without_captions(fields)
    if known is None:
        with ThreadPoolExecutor(_AHEAD) as pool:
            known = list(_in_context(pool, lambda shard: identify(shard, fields), shards))
    files, versions = together.share(partial(_look_at_tables, sidecar, shards))
    marked = [
        JoinedShard(split(shard)[1], each.samples, each.mark)
        for shard, each in zip(shards, known, strict=True)
    ]
    made_of = {
        "version": _VERSION,
        "sidecar": asdict(sidecar) | {"files": len(sidecar.files), "missing": ""},
        "shards": [asdict(each) for each in marked],
        "tables": versions,
    }
    name = hashlib.sha256(json.dumps(made_of).encode("utf-8", "surrogateescape")).hexdigest()[:24]
    path = _prepared(folder) / (name + _ENDING)
    try:
        with _locked(path):
            found = open_joined(path)
            if found is None:
                _remove_old(path.parent)
                with whole_file(path, sync=False) as temporary, open(temporary, "wb") as file:
                    _Join(sidecar, shards, marked, fields, files).write(JoinedWriter(file))
                found = Joined(str(path))
            else:
                with suppress(OSError):
                    os.utime(path)
    except PermissionError as error:
        raise PermissionError(
            f"--data.caption-cache: cannot write {explain(error, path)}"
        ) from None
    return found


def _look_at_tables(
    sidecar: Sidecar, shards: Sequence[str]
) -> tuple[list[str], list[list[str | int | None]]]:
    """Tables of all shards, none where each shard has its own; and the version of every table."""
    files = [] if sidecar.per_shard else sidecar.files_of()
    if sidecar.per_shard:
        _require_files(sidecar, shards)
    tables = files or [file for shard in shards for file in sidecar.files_of(shard)]
    with ThreadPoolExecutor(_AHEAD) as pool:
        return files, list(_in_context(pool, _version, tables))


def _prepared(folder: str) -> Path:
    path = Path(folder or usual_folder()).expanduser().absolute()
    try:
        path.mkdir(parents=True, exist_ok=True, mode=0o700 if not folder else 0o777)
    except OSError as error:
        raise OSError(f"--data.caption-cache: {explain(error, path)}") from None
    if not folder and path.parent.stat().st_uid != os.getuid():
        raise PermissionError(
            f"{path.parent} belongs to another user: give a folder of your own by "
            "--data.caption-cache"
        )
    return path


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """One process joins, the others wait for it."""
    descriptor = os.open(path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _remove_old(folder: Path) -> None:
    remove_stale_in(folder)
    for path in folder.glob("*" + _ENDING):
        with suppress(OSError):
            if path.stat().st_mtime < time.time() - _KEPT_SECONDS:
                path.unlink()
                path.with_suffix(".lock").unlink()


def _version(path: str) -> list[str | int | None]:
    """What tells that a table was written anew. Not where it lies."""
    storage = storage_of(path)
    stat = storage.stat(path)
    if stat.etag is not None:
        return [split(path)[1], stat.size, stat.etag]
    head = storage.read_at(path, 0, _BEGINNING)
    tail = storage.read_at(path, max(0, stat.size - _BEGINNING), _BEGINNING)
    ends = hashlib.sha256(head + tail).hexdigest()
    return [split(path)[1], stat.size, stat.modified, ends]


def _require_files(sidecar: Sidecar, shards: Sequence[str]) -> None:
    wanted = [file for shard in shards for file in sidecar.files_of(shard)]
    by_storage: dict[int, list[str]] = {}
    for path in wanted:
        by_storage.setdefault(id(storage_of(path)), []).append(path)
    missing = []
    for paths in by_storage.values():
        present = storage_of(paths[0]).present(paths)
        missing += [path for path in paths if path not in present]
    if missing:
        raise FileNotFoundError(
            f"{len(missing):,} of {len(wanted):,} tables of captions are missing, such as "
            f"{printable(missing[0])}: complete them, or leave their shards out"
        )


def _in_context(
    pool: ThreadPoolExecutor, work: Callable[[Any], Any], items: Sequence[Any]
) -> Iterator[Any]:
    """Results in order, a few ahead; who waits for a store is known in threads too."""
    waiting: deque[Future[Any]] = deque()
    for item in items:
        waiting.append(pool.submit(contextvars.copy_context().run, work, item))
        if len(waiting) > 2 * _AHEAD:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


@dataclass(frozen=True, eq=False)
class _Keys:
    """The samples of a shard.

    Attributes:
        keys: ``[N]``.
        members: ``[N]`` bool, which have a caption in the tar.
        lookup: of the shard's own tables; None where there is one of all shards.
    """

    keys: list[str]
    members: np.ndarray
    lookup: Lookup | None


class _Join:
    """One join.

    Args:
        sidecar: where captions stand.
        shards: paths.
        marked: what they are known by.
        fields: see ``join``.
        files: tables of all shards; none where each has its own.
    """

    def __init__(
        self,
        sidecar: Sidecar,
        shards: Sequence[str],
        marked: Sequence[JoinedShard],
        fields: Fields,
        files: Sequence[str],
    ) -> None:
        self._sidecar, self._shards, self._marked = sidecar, shards, marked
        self._fields = fields
        self._tables = ", ".join(sidecar.files)
        self._all: Lookup | None = None
        if files:
            self._all = Lookup(joined_rows([read_rows(file, sidecar) for file in files]))
            # The shard of each key that was found, from 1.
            self._owner = np.zeros(len(self._all), np.int32)
            if self._all.rows.with_shards:
                self._require_names()

    def write(self, writer: JoinedWriter) -> None:
        """Look all samples up."""
        found = unused = 0
        example: tuple[str, ...] = ()
        with ThreadPoolExecutor(_AHEAD) as pool:
            all_keys = _in_context(pool, self._read, range(len(self._shards)))
            for number, keys in enumerate(all_keys):
                lookup = keys.lookup or self._all
                assert lookup is not None
                places = self._find(number, keys, lookup)
                counts, texts = lookup.captions(places)
                ends, data = parts(texts)
                text = data[ends[0] : ends[-1]] if len(texts) else data[:0]
                writer.add(self._marked[number], counts, np.diff(ends), text, keys.members)
                found += int((counts > 0).sum())
                if keys.lookup is not None:
                    unused += len(lookup) - len(np.unique(places[places >= 0]))
                if not example and not counts.all():
                    key = keys.keys[int(np.flatnonzero(counts == 0)[0])]
                    example = printable(key), self._marked[number].name
                    sample = lookup
        if not found:
            raise ValueError(self._nothing(sample, example[0] if example else ""))
        if self._all is not None:
            unused = int((self._owner == 0).sum())
        writer.finish(unused, example)

    def _read(self, number: int) -> _Keys:
        shard = self._shards[number]
        table = read_table(shard, self._fields)
        if table.mark != self._marked[number].mark:
            raise ValueError(f"shard {shard} or its index was written while it was read")
        lookup = None
        if self._sidecar.per_shard:
            files = self._sidecar.files_of(shard)
            lookup = Lookup(joined_rows([read_rows(file, self._sidecar) for file in files]))
        return _Keys(table.keys(), table.caption_offset > 0, lookup)

    def _find(self, number: int, keys: _Keys, lookup: Lookup) -> np.ndarray:
        pa = arrow()
        before = shard_name(self._shards[number]) + SEPARATOR if lookup.rows.with_shards else ""
        encoded = [(before + key).encode("utf-8", "surrogateescape") for key in keys.keys]
        places = lookup.find(pa.array(encoded, pa.large_binary()))
        there = np.flatnonzero(places >= 0)
        distinct, first = np.unique(places[there], return_index=True)
        if len(distinct) < len(there):
            again = np.setdiff1d(np.arange(len(there)), first)[0]
            raise ValueError(
                f"shard {self._shards[number]} has several samples of key "
                f"{printable(keys.keys[there[again]])!r}, and the tables of captions "
                f"{self._tables} cannot tell them apart: give each sample a key of its own"
            )
        if keys.lookup is None:
            other = self._owner[distinct]
            if other.any():
                clashes = np.flatnonzero(other)
                at = int(clashes[first[clashes].argmin()])
                key = keys.keys[there[first[at]]]
                raise ValueError(
                    f"key {printable(key)!r} is in {self._shards[other[at] - 1]} and in "
                    f"{self._shards[number]}, and the tables of captions {self._tables} do not say "
                    f"which is meant: add a column {self._sidecar.shard or 'shard'!r} with the "
                    "names of the tars, or give a table per shard ('{shard}.parquet')"
                )
            self._owner[distinct] = number + 1
        return places

    def _require_names(self) -> None:
        """A column of shards tells those of one name not apart."""
        first: dict[str, str] = {}
        for shard in self._shards:
            other = first.setdefault(shard_name(shard), shard)
            if other != shard:
                raise ValueError(
                    f"{other} and {shard} have one name, and the column "
                    f"{self._sidecar.shard!r} of the tables of captions {self._tables} tells "
                    "shards by their names: name tables of each source, NAME=FILE"
                )

    def _nothing(self, lookup: Lookup, key: str) -> str:
        if not len(lookup):
            return f"the tables of captions {self._tables} hold no caption that says something"
        there = lookup.key(0).replace(SEPARATOR, ": ")
        forms = {unicodedata.normalize(form, key) for form in ("NFC", "NFD")} - {key}
        encoded = [form.encode("utf-8", "surrogateescape") for form in forms]
        same = encoded and (lookup.find(arrow().array(encoded, arrow().large_binary())) >= 0).any()
        hint = ". They are equal but for the normal form of Unicode" if same else ""
        return (
            f"no sample of {len(self._shards):,} shard(s) has a row in the tables of captions "
            f"{self._tables}: a key there is {printable(there)!r}, and one of the shards "
            f"{key!r}{hint}. Name the column of keys by --data.caption-key; a key is a member's "
            "name up to the first dot behind its folder"
        )
