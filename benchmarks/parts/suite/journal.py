"""The suite's folder: what was run with, and what became of each part; read again by --resume.

suite.json       device, environment stamp
journal.jsonl    one line per part that has ended
rows/NAME.jsonl  a part's rows, written as they come
logs/NAME.log    what it printed
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.parts.suite.part import Outcome


class Journal:
    """One folder of the suite.

    Args:
        folder: Made where it is missing.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in ("rows", "logs"):
            (folder / name).mkdir(parents=True, exist_ok=True)

    def rows(self, name: str) -> Path:
        """The file of a part's rows."""
        return self.folder / "rows" / f"{name}.jsonl"

    def log(self, name: str) -> Path:
        """The file of what a part printed."""
        return self.folder / "logs" / f"{name}.log"

    def junit(self, name: str) -> Path:
        """The file of a part's tests."""
        return self.folder / "logs" / f"{name}.xml"

    def begin(self, facts: dict[str, Any], *, resume: bool) -> None:
        """Write what the suite runs with; or, to go on, compare it with what it ran with.

        Raises:
            SystemExit: The folder holds a run and is not to be resumed, or cannot be.
        """
        path = self.folder / "suite.json"
        if not path.exists():
            path.write_text(json.dumps(facts, indent=1) + "\n")
            return
        if not resume:
            raise SystemExit(
                f"{self.folder} holds a run of the suite: --resume goes on with it, and another "
                "--out begins a new one"
            )
        before = json.loads(path.read_text())
        for key in ("device", "device_name"):
            if before[key] != facts[key]:
                raise SystemExit(
                    f"{self.folder} was measured on {before[key]}, and this is {facts[key]}: "
                    "rows of two machines do not mix; give another --out"
                )

    def outcomes(self) -> dict[str, Outcome]:
        """What became of each part, by its last line."""
        path = self.folder / "journal.jsonl"
        if not path.exists():
            return {}
        found = {}
        for line in path.read_text().splitlines():
            try:
                outcome = Outcome(**json.loads(line))
            except ValueError:
                continue  # the line that was being written as the suite was killed
            found[outcome.name] = outcome
        return found

    def add(self, outcome: Outcome) -> None:
        """Note what became of a part."""
        path = self.folder / "journal.jsonl"
        # What a killed suite left of a line must not spoil this one.
        torn = path.exists() and not path.read_bytes().endswith(b"\n") and path.stat().st_size
        with path.open("a") as file:
            file.write("\n" * bool(torn) + json.dumps(asdict(outcome)) + "\n")
