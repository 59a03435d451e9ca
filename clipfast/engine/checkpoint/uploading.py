"""How a checkpoint that stands here gets into a store, while training goes on."""

import logging
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch.distributed as dist

from clipfast.checkpoint import Entry
from clipfast.checkpoint.manifest import NAME, entry_of
from clipfast.engine import progress
from clipfast.engine.agreement import from_main
from clipfast.engine.checkpoint.folder import CheckpointFolder
from clipfast.engine.checkpoint.store import CheckpointStore
from clipfast.engine.launch import Process
from clipfast.storage import storage_of
from clipfast.storage.paths import join
from clipfast.storage.patience import unwanted
from clipfast.storage.transfer import send

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Sent:
    """How an upload ended.

    Attributes:
        what: was sent, such as "step00000020".
        size: bytes.
        seconds: from its begin to its end, waiting included.
        error: why it is not in the store; empty where it is.
    """

    what: str
    size: int = 0
    seconds: float = 0.0
    error: str = ""


@dataclass
class _UnderWay:
    """A checkpoint on its way.

    Attributes:
        number: of uploads, from 1.
        path: its folder here.
        data: the manifest's bytes, on rank 0.
        began: when, by this rank's clock.
        work: what this rank's thread does: it sends the rank's files.
    """

    number: int
    path: Path
    data: bytes
    began: float
    work: "Future[int]"


class Uploading:
    """Sends the checkpoints of a run. ``begin``, ``advance`` and ``finish`` are collectives.

    Each rank has a thread, which sends the files that the rank wrote. Once all ranks have, rank 0's
    thread sends what the run wrote down so far, puts the manifest behind the files, and deletes
    what is no longer kept there. One checkpoint is on its way at a time, and the newest waits.

    Args:
        store: the run's folder there.
        folder: of the checkpoints here; what is on its way is not deleted from it.
        process: this rank.
        records: what the run writes down, by the names that it has there.
    """

    def __init__(
        self,
        store: CheckpointStore,
        folder: CheckpointFolder,
        process: Process,
        records: Mapping[str, Path],
    ) -> None:
        self._store = store
        self._folder = folder
        self._process = process
        self._records = dict(records)
        self._given_up = threading.Event()
        self._worker = ThreadPoolExecutor(
            1, "clipfast-upload", initializer=unwanted.set, initargs=(self._given_up,)
        )
        self._begun = 0
        self._moved = 0
        self._under_way: _UnderWay | None = None
        self._next: tuple[Path, Mapping[str, Entry]] | None = None
        # Of rank 0: what ends without the other ranks.
        self._ending: list[tuple[str, Future[Sent]]] = []

    @property
    def progress(self) -> int:
        """Uploads that this rank has done its part of."""
        return self._begun - (self._under_way is not None and not self._under_way.work.done())

    @property
    def unsent(self) -> list[str]:
        """What is still on its way, or waits."""
        under_way = [self._under_way.path.name] if self._under_way else []
        waits = [self._next[0].name] if self._next else []
        return [*under_way, *(name for name, _ in self._ending), *waits]

    def begin(self, path: Path, mine: Mapping[str, Entry]) -> str:
        """Send a checkpoint, as soon as the one before is there.

        Args:
            path: its folder here, whole.
            mine: the files that this rank sends.

        Returns:
            The name of one that waited and is left out for it; empty where there was none.
        """
        before = self._next[0].name if self._next else ""
        self._next = (path, mine)
        self._hold()
        if self._under_way is None:
            self._start()
        return before

    def advance(self, least: int) -> list[Sent]:
        """What has come to its end, without waiting for more.

        Args:
            least: the smallest ``progress`` of any rank, the same on every rank.

        Returns:
            On rank 0 and of a failure on every rank: how uploads ended.
        """
        ended = []
        if self._under_way is not None and least >= self._under_way.number:
            ended = self._gather()
        return [*ended, *self._ended()]

    def finish(self, patience: float) -> list[Sent]:
        """Wait for all of it.

        Args:
            patience: seconds without a byte on its way, after which the rest is given up.

        Returns:
            How uploads ended, the same on every rank.
        """
        ended: list[Sent] = []
        while self._under_way is not None:
            self._wait_for(self._under_way.work, patience)
            ended += self._gather()

        def end() -> list[Sent]:
            for _, work in self._ending:
                self._wait_for(work, patience)
            self._folder.delete_surplus()
            return self._ended()

        return [*ended, *from_main(self._process, end)]

    def send(self, files: Mapping[str, Path], what: str) -> None:
        """Send single files of the run, on rank 0.

        Args:
            files: by the names that they get there.
            what: they are, for a person.
        """

        def act() -> int:
            entries = {name: entry_of(path) for name, path in files.items()}
            for name, path in files.items():
                there = join(self._store.folder, name)
                send(path, there, entries[name].size, entries[name].sha256, self._count)
            return sum(entry.size for entry in entries.values())

        self._ending.append((what, self._worker.submit(self._try, what, act)))

    def leave(self, patience: float) -> list[Sent]:
        """End the thread; what is on its way is given up. No collective.

        Args:
            patience: seconds that rank 0 takes to send what the run has written down; 0: it does
                not.

        Returns:
            What was not sent.
        """
        unsent = [Sent(name, error="the run ended before") for name in self.unsent]
        if unsent:
            self._given_up.set()
        elif self._process.is_main and patience:
            work = self._worker.submit(self._try, "records", self._send_records)
            if not wait([work], timeout=patience).done:
                self._given_up.set()
            unsent = [sent for sent in [work.result()] if sent.error]
        self._given_up.set()
        self._worker.shutdown(cancel_futures=True)
        return unsent

    def _start(self) -> None:
        assert self._next is not None
        (path, mine), self._next = self._next, None
        self._begun += 1
        data = b""
        if self._process.is_main:
            try:
                data = (path / NAME).read_bytes()
            except OSError:
                # It is told of by the file that cannot be sent.
                _log.debug("%s cannot be read", path / NAME)
        work = self._worker.submit(self._send_mine, path, mine, data)
        self._under_way = _UnderWay(self._begun, path, data, time.monotonic(), work)
        self._hold()

    def _hold(self) -> None:
        """Checkpoints that are sent stay here until they are."""
        under_way = [self._under_way.path] if self._under_way else []
        self._folder.held = {*under_way, *([self._next[0]] if self._next else [])}

    def _gather(self) -> list[Sent]:
        """What all ranks say of the checkpoint on its way; the next one begins."""
        upload = self._under_way
        assert upload is not None
        try:
            mine: tuple[int, str] = (upload.work.result(), "")
        except Exception as error:  # whatever a store's client raises, training goes on
            mine = (0, _said(error))
        shared: list[Any] = [None] * self._process.world_size
        dist.all_gather_object(shared, mine)
        size, seconds = sum(each for each, _ in shared), time.monotonic() - upload.began
        errors = [f"rank {rank}: {text}" for rank, (_, text) in enumerate(shared) if text]
        self._under_way = None
        self._hold()
        name = upload.path.name
        ended = []
        if errors:
            ended = [Sent(name, 0, seconds, "; ".join(errors))]
        elif self._process.is_main:
            work = self._worker.submit(self._complete, name, upload.data, size, upload.began)
            self._ending.append((name, work))
        if self._next is not None:
            self._start()
        return ended

    def _ended(self) -> list[Sent]:
        done = [work.result() for _, work in self._ending if work.done()]
        self._ending = [(name, work) for name, work in self._ending if not work.done()]
        return done

    def _send_mine(self, path: Path, mine: Mapping[str, Entry], data: bytes) -> int:
        """In the thread: this rank's files."""
        if self._process.is_main:
            self._store.require_alone(path.name, data)
        for name, entry in mine.items():
            there = join(self._store.checkpoints, path.name, name)
            send(path / name, there, entry.size, entry.sha256, self._count)
        return sum(entry.size for entry in mine.values())

    def _complete(self, name: str, data: bytes, size: int, began: float) -> Sent:
        """In the thread of rank 0: what is behind the files."""

        def act() -> int:
            self._send_records()
            self._store.complete(name, data)
            return size

        return self._try(name, act, began)

    def _send_records(self) -> int:
        size = 0
        for name, path in self._records.items():
            if path.exists():
                # Rows are added meanwhile: what is sent is what is there now.
                data = path.read_bytes()
                storage_of(self._store.folder).write_atomic(join(self._store.folder, name), data)
                size += len(data)
        return size

    def _try(self, what: str, act: Callable[[], int], began: float | None = None) -> Sent:
        start = time.monotonic() if began is None else began
        try:
            size = act()
        except Exception as error:  # whatever a store's client raises, training goes on
            return Sent(what, 0, time.monotonic() - start, _said(error))
        return Sent(what, size, time.monotonic() - start)

    def _count(self, moved: int) -> None:
        self._moved += moved

    def _wait_for(self, work: "Future[Any]", patience: float) -> None:
        """Until it is done; the watch hears meanwhile that this rank is alive."""
        moved, since = self._moved, time.monotonic()
        while not wait([work], timeout=0.2).done:
            progress.again()
            if self._moved != moved:
                moved, since = self._moved, time.monotonic()
            elif time.monotonic() - since > patience:
                self._given_up.set()


def _said(error: BaseException) -> str:
    if isinstance(error, OSError | ValueError):
        return str(error)
    return f"{type(error).__name__}: {error}"
