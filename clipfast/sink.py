"""What ``torch.save`` writes to in the place of a file, so that a failed write stays an OSError."""

import hashlib
import os
import threading
from concurrent.futures import Executor
from pathlib import Path
from types import TracebackType
from typing import Any

# Below it the hand-over to the hashing thread costs more than the hash.
_LEAST_FOR_A_THREAD = 1 << 20


class Sink:
    """A file to write from its beginning to its end, hashed meanwhile where that is asked for.

    An error is kept and not raised: it would have to pass through the C++ of the archive's writer,
    whose destructor then writes again. Leaving the ``with`` block raises it.

    Args:
        path: of the file.
        hashing: computes the SHA-256 beside the writing; None: there is no hash.
        sync: wait until the bytes are on the disk.
        given_up: once it is set, nobody wants the file any more, and its writing fails.

    Attributes:
        size: bytes written.
        error: the first failure.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        hashing: Executor | None = None,
        *,
        sync: bool = False,
        given_up: threading.Event | None = None,
    ) -> None:
        self._path = Path(path)
        self._hashing = hashing
        self._digest = hashlib.sha256()
        self._sync = sync
        self._given_up = given_up
        self._file: Any = None
        self.size = 0
        self.error: OSError | None = None

    def __enter__(self) -> "Sink":
        self._file = open(self._path, "wb", buffering=0)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            if self._sync and kind is None and self.error is None:
                os.fsync(self._file.fileno())
        finally:
            self._file.close()
        if self.error is not None:
            raise self.error from error

    def write(self, data: Any) -> int:
        """Write some bytes; after an error nothing more is written.

        Returns:
            Their number, also where they could not be written.
        """
        view = memoryview(data).cast("B")
        if self.error is None:
            try:
                if self._given_up is not None and self._given_up.is_set():
                    raise InterruptedError(f"{self._path}: nobody waits for it any more")
                self._write(view)
            except OSError as error:
                self.error = error
        return len(view)

    def flush(self) -> None:
        """Nothing waits here to be written."""

    def hexdigest(self) -> str:
        """SHA-256 of what was written, in hexadecimal digits."""
        return self._digest.hexdigest()

    def _write(self, view: memoryview) -> None:
        # Both release the interpreter: the hash costs no time where a core is free.
        under_way = None
        if self._hashing is not None:
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
