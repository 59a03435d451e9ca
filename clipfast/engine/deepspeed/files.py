"""How DeepSpeed's checkpoints reach the disk and come back: hashed, synced, read without trust."""

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from deepspeed.runtime.checkpoint_engine.checkpoint_engine import CheckpointEngine

from clipfast.checkpoint import Entry, load_trusted

# Below it the hand-over to the hashing thread costs more than the hash.
_LEAST_FOR_A_THREAD = 1 << 20


class CheckpointFiles(CheckpointEngine):
    """What DeepSpeed calls to write and read each file of a checkpoint, one on every rank.

    A file that cannot be written raises nothing: the other ranks wait for this one in collectives
    of the same save. ``error`` tells afterwards.

    Attributes:
        written: the files of the save under way, by name.
        error: the first failure of the save under way.
        sync: files are on the disk when a save ends.
    """

    def __init__(self) -> None:
        super().__init__()
        self.sync = True
        self.begin()

    def begin(self) -> None:
        """Forget the save before."""
        self.written: dict[str, Entry] = {}
        self.error: OSError | None = None

    def create(self, info: Any) -> None:
        """Called before a save."""

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        """Make a folder."""
        try:
            os.makedirs(path, exist_ok=exist_ok)
        except OSError as error:
            self.failed(error)

    def save(self, state_dict: Any, path: str) -> None:
        """Write one file."""
        if self.error is not None:
            return
        try:
            self.written[os.path.basename(path)] = write_hashed(state_dict, path, sync=self.sync)
        except OSError as error:
            self.failed(error)

    def load(self, path: str, map_location: Any = None) -> Any:
        """Read one file.

        Raises:
            Refused: it would run something.
        """
        return load_trusted(path, map_location)

    def commit(self, info: Any) -> bool:
        """Called after a save."""
        return True

    def failed(self, error: OSError) -> None:
        """Keep the first failure."""
        self.error = self.error or error


def copy_scripts(files: CheckpointFiles, copy: Any) -> Any:
    """DeepSpeed's copy of ``zero_to_fp32.py``, which must not end a run either.

    Args:
        files: learn of the failure.
        copy: of DeepSpeed.
    """

    def copied(folder: str) -> None:
        try:
            for name in ("zero_to_fp32.py", "zero_to_torch.py"):
                # A copy goes through a link to what it points to.
                Path(folder, name).unlink(missing_ok=True)
            copy(folder)
        except OSError as error:
            files.failed(error)

    return copied


def write_hashed(state: Any, path: str | Path, *, sync: bool = True) -> Entry:
    """``torch.save``, with the hash of what was written.

    Args:
        state: what to save.
        path: the file.
        sync: wait until it is on the disk.

    Returns:
        Its size and hash.

    Raises:
        OSError: it cannot be written.
    """
    with open(path, "wb", buffering=0) as file, ThreadPoolExecutor(1) as hashing:
        hashed = _HashedFile(file, hashing)
        torch.save(state, hashed)
        if hashed.error is not None:
            raise hashed.error
        if sync:
            os.fsync(file.fileno())
    return Entry(hashed.size, hashed.hexdigest())


class _HashedFile:
    """What ``torch.save`` writes to. An error is kept and not raised: it would have to pass through
    the C++ of the archive's writer, whose destructor then writes again."""

    def __init__(self, file: Any, hashing: ThreadPoolExecutor) -> None:
        self._file = file
        self._hashing = hashing
        self._digest = hashlib.sha256()
        self.size = 0
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        if self.error is None:
            try:
                self._write(view)
            except OSError as error:
                self.error = error
        return len(view)

    def flush(self) -> None:
        pass

    def hexdigest(self) -> str:
        return self._digest.hexdigest()

    def _write(self, view: memoryview) -> None:
        # Both release the interpreter: the hash costs no time where a core is free.
        under_way = None
        if len(view) >= _LEAST_FOR_A_THREAD:
            under_way = self._hashing.submit(self._digest.update, view)
        else:
            self._digest.update(view)
        try:
            done = 0
            while done < len(view):
                done += self._file.write(view[done:])
            self.size += done
        finally:
            if under_way is not None:
                under_way.result()
