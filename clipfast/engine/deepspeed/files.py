"""How a rank's part of a checkpoint reaches the disk: hashed, synced, at once or later."""

import logging
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from clipfast.checkpoint import Entry
from clipfast.checkpoint.tensor_file import dump_tensors
from clipfast.engine.checkpoint.host_copies import HostCopies
from clipfast.sink import Sink

_log = logging.getLogger(__name__)


class CheckpointFiles:
    """Writes the files of a checkpoint; stands in an engine where DeepSpeed has its own writer.

    A file that cannot be written raises nothing: the other ranks wait for this one in collectives
    of the same save. ``error`` tells afterwards.

    Attributes:
        written: the files of the save under way, by name.
        error: the first failure of the save under way.
    """

    def __init__(self) -> None:
        self._given_up = threading.Event()
        self.begin()

    def begin(self, *, sync: bool = True, copies: HostCopies | None = None) -> None:
        """Forget the save before.

        Args:
            sync: files are on the disk when the save ends.
            copies: given, files wait for ``copy``, which copies their content there, and for
                ``write_copies``.
        """
        self.written: dict[str, Entry] = {}
        self.error: OSError | None = None
        self._sync = sync
        self._copies = copies
        self._waiting: list[tuple[Any, str]] = []

    def is_decoupled(self) -> bool:
        """Asked by DeepSpeed, after steps and at its end: it has nothing to wait for."""
        return False

    def save(self, state_dict: Any, path: str) -> None:
        """Write one file, or let it wait."""
        self._waiting.append((state_dict, path))
        if self._copies is None:
            self._write_waiting()

    def copy(self) -> None:
        """Copy what the files that wait are to hold."""
        assert self._copies is not None
        try:
            copied = self._copies.take([content for content, _ in self._waiting])
        except MemoryError as error:
            _log.warning("%s. This checkpoint is written while training waits", error)
            self._write_waiting()
        else:
            paths = [path for _, path in self._waiting]
            self._waiting = list(zip(copied, paths, strict=True))

    def write_copies(self) -> None:
        """Write the files whose content was copied; another thread may call it."""
        assert self._copies is not None
        self._copies.wait()
        self._write_waiting()

    def give_up(self) -> None:
        """Let the save under way fail soon: nobody waits for it any more."""
        self._given_up.set()

    def failed(self, error: OSError) -> None:
        """Keep the first failure."""
        self.error = self.error or error

    def _write_waiting(self) -> None:
        for content, path in self._waiting:
            if self.error is not None:
                break
            try:
                entry = write_hashed(content, path, sync=self._sync, given_up=self._given_up)
                self.written[os.path.basename(path)] = entry
            except OSError as error:
                self.failed(error)
        self._waiting = []


def write_hashed(
    state: Any,
    path: str | Path,
    *,
    sync: bool = True,
    given_up: threading.Event | None = None,
) -> Entry:
    """A safetensors file, with the hash of what was written.

    Args:
        state: tensors by name.
        path: the file.
        sync: wait until it is on the disk.
        given_up: once it is set, nobody wants the file any more, and its writing fails.

    Returns:
        Its size and hash.

    Raises:
        OSError: it cannot be written.
    """
    with (
        ThreadPoolExecutor(1) as hashing,
        Sink(path, hashing, sync=sync, given_up=given_up) as sink,
    ):
        dump_tensors(state, sink)
    return Entry(sink.size, sink.hexdigest())
