"""``metrics.jsonl``: no row is lost to a full disk, a deleted folder or a damaged line."""

import errno
import json
import os
from pathlib import Path
from typing import Any

from clipfast.engine.config import ConfigError
from clipfast.files import append, explain, write_whole


class Rows:
    """The rows of a run.

    The first row names the run. A run that goes on keeps the rows up to its checkpoint; those after
    it, and lines that are damaged, go to ``metrics.set-aside.jsonl``.

    Args:
        path: of the file; its folder exists.
        run: id of the run.
        first_step: of the checkpoint that the run goes on from; 0 begins anew.
        sync: the kept rows are on the disk before the old file goes.

    Attributes:
        notes: lines for a person, of what was found.

    Raises:
        ConfigError: the rows are another run's.
        OSError: the file cannot be written.
    """

    def __init__(self, path: Path, run: str, first_step: int, *, sync: bool = True) -> None:
        self._path = path
        self._run = run
        self._header = json.dumps({"step": 0, "run": run})
        self.notes: list[str] = []
        # Not on the disk, oldest first.
        self._pending: list[str] = []
        self._failing = False
        kept, aside = self._sorted_out(run, first_step)
        if aside:
            append(
                path.with_name("metrics.set-aside.jsonl"), "".join(f"{line}\n" for line in aside)
            )
        data = "".join(line + "\n" for line in (self._header, *kept))
        write_whole(path, data.encode(), sync=sync)
        self._file = open(path, "r+b", buffering=0)  # noqa: SIM115
        self._file.seek(0, os.SEEK_END)
        # Of whole rows: a row that a full disk cut is written again from here.
        self._end = self._file.tell()

    def write(self, row: str) -> list[str]:
        """Write a row, and those that could not be written before it.

        Args:
            row: JSON in one line.

        Returns:
            Lines for a person, where rows begin to wait or stop waiting.
        """
        self._pending.append(row)
        try:
            self._flush()
        except OSError as error:
            return self._failed(error)
        if self._failing:
            self._failing = False
            return [f"{self._path} is written again, with all rows since"]
        return []

    def close(self) -> list[str]:
        """Close the file.

        Returns:
            A line for a person where rows are lost.
        """
        lines: list[str] = []
        if self._file.closed:
            return lines
        try:
            self._flush()
        except OSError as error:
            lines = [f"LOST: the last {len(self._pending)} rows of {explain(error, self._path)}"]
        self._file.close()
        return lines

    def _sorted_out(self, run: str, first_step: int) -> tuple[list[str], list[str]]:
        """Rows to keep and lines to put aside."""
        if not self._path.exists():
            return [], []
        kept, aside, damaged = [], [], 0
        for line in self._path.read_text(errors="replace").splitlines():
            row = _parsed(line)
            if row is None:
                damaged += 1
                aside.append(line)
            elif "run" in row:
                if run and row["run"] and row["run"] != run:
                    raise ConfigError(
                        f"{self._path} has the rows of run {row['run']}, this is run {run}: move "
                        "that file away, or give this run another name (--logging.name)"
                    )
            elif row["step"] <= first_step and first_step:
                kept.append(line)
            else:
                aside.append(line)
        if damaged:
            self.notes.append(
                f"{self._path}: {damaged} damaged line(s), kept in metrics.set-aside.jsonl"
            )
        return kept, aside

    def _flush(self) -> None:
        self._follow()
        while self._pending:
            self._append(self._pending[0] + "\n")
            self._pending.pop(0)

    def _append(self, text: str) -> None:
        data = text.encode()
        self._file.seek(self._end)
        done = 0
        while done < len(data):
            done += self._file.write(data[done:])
        self._end += done

    def _follow(self) -> None:
        """Where the file was deleted or replaced, write all of it anew: it is still open here."""
        try:
            there, ours = os.stat(self._path), os.fstat(self._file.fileno())
            if (there.st_dev, there.st_ino) == (ours.st_dev, ours.st_ino):
                return
        except FileNotFoundError:
            pass
        else:
            with open(self._path, "rb") as file:
                row = _parsed(file.readline().decode(errors="replace")) or {}
            if row.get("run", self._run) != self._run:
                raise OSError(errno.EBUSY, f"it now has the rows of run {row['run']}")
        whole = os.pread(self._file.fileno(), self._end, 0)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(self._path, whole, sync=False)
        self._file.close()
        self._file = open(self._path, "r+b", buffering=0)  # noqa: SIM115

    def _failed(self, error: OSError) -> list[str]:
        if self._failing:
            return []
        self._failing = True
        return [f"{explain(error, self._path)}: rows wait in memory until it can be written"]


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a file that can be read, without those of damaged lines.

    Args:
        path: of ``metrics.jsonl``.
    """
    lines = path.read_text(errors="replace").splitlines()
    return [row for line in lines if (row := _parsed(line)) is not None]


def _parsed(line: str) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(row, dict) or type(row.get("step")) is not int:
        return None
    return row
