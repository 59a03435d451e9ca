"""Which rows a service has, so that a run that goes on from a checkpoint sends none of them twice.

A service that takes rows in order of their steps keeps those that were sent after the checkpoint.
``metrics.jsonl`` can put them aside; the service cannot.
"""

import json
from pathlib import Path

from clipfast.files import write_whole


class Sent:
    """The last step whose rows were sent for certain.

    Args:
        path: of the file that remembers it.
        run: id of the run; what another one sent does not count.
    """

    def __init__(self, path: Path, run: str) -> None:
        self._path = path
        self._run = run
        self._last = self._read()
        self._current = 0

    def wants(self, step: int) -> bool:
        """Whether the rows of a step are still to be sent. Those of a step before it are certain by
        then.

        Args:
            step: number of it; the calls' never go down.
        """
        if step <= self._last:
            return False
        if self._current < step:
            self._settle()
            self._current = step
        return True

    def close(self) -> None:
        """All rows were sent."""
        self._settle()

    def _settle(self) -> None:
        if self._current > self._last:
            self._last = self._current
            row = {"run": self._run, "step": self._last}
            write_whole(self._path, json.dumps(row).encode(), sync=False)

    def _read(self) -> int:
        try:
            found = json.loads(self._path.read_bytes())
            return int(found["step"]) if found["run"] == self._run else 0
        except (OSError, ValueError, KeyError, TypeError):
            return 0
