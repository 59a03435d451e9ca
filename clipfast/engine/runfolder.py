"""The folder of a run: held by one run at a time, with a record of who wrote what is in it."""

import itertools
import json
import os
import socket
import sys
import time
import uuid
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from clipfast.engine.config import ConfigError
from clipfast.engine.lock import Held, Lock
from clipfast.files import explain, write_whole

RECORD, METRICS = "run.json", "metrics.jsonl"
# What tells that a run was in a folder.
_REMAINS = (RECORD, METRICS, "checkpoints", "final.safetensors")


class RunFolder:
    """``DIR/NAME`` of a run, on rank 0.

    ``run.json`` holds the run's id, which its checkpoints and metrics bear too, and an entry for
    every start: command, versions, the whole configuration, what it resumed and how it ended. The
    lock ``DIR/.NAME.lock`` is held for as long as the run lives.

    Args:
        path: of the folder.
        sync: wait until what is written is on the disk.

    Attributes:
        run_id: of this run, once ``open`` was called.
    """

    def __init__(self, path: Path, *, sync: bool = True) -> None:
        self.path = path
        self.run_id = ""
        self._sync = sync
        self._lock = Lock(path.parent / f".{path.name}.lock")
        self._record: dict[str, Any] = {}

    def open(
        self,
        *,
        resumes: bool,
        known: str = "",
        fetch: Callable[[], list[str]] | None = None,
    ) -> list[str]:
        """Take the folder's name, and find out which run's it is.

        Args:
            resumes: the run that is in it goes on; else a new one begins.
            known: id of that run, as its checkpoints say, for a folder without a record.
            fetch: brings the records of a run of which nothing is here, once its name is held;
                returns lines for a person.

        Returns:
            Lines for a person.

        Raises:
            ConfigError: a live run has the name, or the folder cannot be written.
        """
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._lock.acquire()
        except Held as error:
            raise ConfigError(
                f"{self.path} belongs to a run that is alive: {error}. Give this one a name of its "
                "own (--logging.name), or stop that one first"
            ) from error
        except OSError as error:
            reason = explain(error, self.path)
            raise ConfigError(f"{self.path} cannot be used as a run's folder: {reason}") from error
        fetched = fetch() if fetch is not None and not self._has_remains() else []
        found, notes = self._read() if resumes else ({}, [])
        notes = [*fetched, *notes]
        self.run_id = found.get("run") or known or uuid.uuid4().hex[:12]
        self._record = {"run": self.run_id, "starts": found.get("starts", [])}
        return notes

    def begin(self, start: Mapping[str, Any], *, resumed: bool) -> list[str]:
        """Put an earlier run of the name aside, or go on with it, and write down this start.

        Args:
            start: configuration, what was resumed, and so on, as JSON takes it.
            resumed: the folder's run goes on from one of its checkpoints, or from its beginning.

        Returns:
            Lines for a person.

        Raises:
            ConfigError: the folder cannot be written.
        """
        notes = []
        try:
            if not resumed and (old := self._move_aside()):
                notes.append(
                    f"An earlier run was here: it is now {old} (to go on: --resume latest)"
                )
            self._record["starts"].append({**_who(), **start})
            self._write()
        except OSError as error:
            reason = explain(error, self.path)
            raise ConfigError(f"{self.path} cannot be used as a run's folder: {reason}") from error
        return notes

    def end(self, status: str, step: int) -> None:
        """Write down how this start ended; a disk that is full by then is not told of twice.

        Args:
            status: finished, interrupted or failed.
            step: optimizer steps taken.
        """
        # Not into a folder that another run took meanwhile.
        if self._record.get("starts") and self._lock.is_held and self._is_ours():
            self._record["starts"][-1]["ended"] = {"status": status, "step": step, "time": _now()}
            with suppress(OSError):
                self._write()

    def require(self) -> None:
        """The folder is still this run's; one that was deleted is made anew.

        Raises:
            ConfigError: another run took it.
            OSError: it cannot be written.
        """
        try:
            self._lock.require()
        except Held as error:
            raise ConfigError(f"{self.path} was taken by another run meanwhile: {error}") from error
        found, _ = self._read()
        if not found:
            self._write()
        elif found.get("run") != self.run_id:
            raise ConfigError(
                f"{self.path} now belongs to run {found.get('run')}, this is run {self.run_id}: it "
                "stops, and leaves what is there alone"
            )

    def _is_ours(self) -> bool:
        try:
            return bool(_parse(self.path / RECORD)["run"] == self.run_id)
        except FileNotFoundError:
            return True
        except (OSError, ValueError):
            return False

    def close(self) -> None:
        """Let others have the name."""
        self._lock.release()

    def _read(self) -> tuple[dict[str, Any], list[str]]:
        path = self.path / RECORD
        try:
            return _parse(path), []
        except FileNotFoundError:
            return {}, []
        except OSError as error:
            return {}, [f"{path} cannot be read: {error.strerror}"]
        except ValueError:
            pass
        kept = _unused(path)
        with suppress(OSError):
            os.replace(path, kept)
        return {}, [f"{path} was damaged: what it held is now {kept}"]

    def _write(self) -> None:
        self.path.mkdir(parents=True, exist_ok=True)
        data = json.dumps(self._record, indent=1).encode()
        write_whole(self.path / RECORD, data, sync=self._sync)

    def _has_remains(self) -> bool:
        return any((self.path / name).exists() for name in _REMAINS)

    def _move_aside(self) -> Path | None:
        """Rename the folder of an earlier run to ``NAME.1``, ``NAME.2``, ..."""
        if not self._has_remains():
            return None
        return self.path.rename(_unused(self.path))


def _parse(path: Path) -> dict[str, Any]:
    """A run's record.

    Raises:
        ValueError: it is none.
        OSError: it cannot be read.
    """
    try:
        found = json.loads(path.read_bytes())
        if isinstance(found["run"], str) and isinstance(found["starts"], list):
            return dict(found)
    except (KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{path} is no record of a run") from error
    raise ValueError(f"{path} is no record of a run")


def _unused(path: Path) -> Path:
    return next(p for n in itertools.count(1) if not (p := Path(f"{path}.{n}")).exists())


def _who() -> dict[str, Any]:
    return {
        "time": _now(),
        "command": [sys.executable, *sys.argv],
        "folder": os.getcwd(),
        "host": socket.gethostname(),
        "pid": os.getpid(),
    }


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")
