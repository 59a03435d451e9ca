"""Many resumes by processes that stay, one for each rank."""

import json
import os
import selectors
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests import commands
from tests.campaigns.subject import RECIPE, Subject, free_port

_WORKER = Path(__file__).with_name("resume_worker.py")
_HUNG = 124


@dataclass(frozen=True)
class Resumed:
    """How a resume ended.

    Attributes:
        status: as of a whole process: 0, 1 for a traceback, 2 for a refusal, 124 for none in time.
        step: that it went on from, -1 where it did not.
        said: what all ranks printed.
        verified: status of ``python -m clipfast.checkpoint verify`` before it, None where there is
            no such program.
        verify_said: what that printed.
    """

    status: int
    step: int
    said: str
    verified: int | None
    verify_said: str


class Resumer:
    """Ranks that stay for many resumes.

    Args:
        subject: whose engine resumes.
        ranks: of each run.
        seconds: that a resume may take.
    """

    def __init__(self, subject: Subject, ranks: int, seconds: float = 25.0) -> None:
        self._subject, self._ranks, self._seconds = subject, ranks, seconds
        self._workers: list[commands.Started] = []

    def __enter__(self) -> "Resumer":
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def resume(
        self, options: Sequence[str], *, train: bool = False, verify: Path | None = None
    ) -> Resumed:
        """Build a run from these options, which name a checkpoint or not.

        Args:
            options: of the recipe.
            train: go on to the end.
            verify: a run's folder to verify before.
        """
        job = {"options": list(options), "train": train, "verify": str(verify) if verify else None}
        if not self._workers:
            self._start()
        for worker in self._workers:
            worker.stdin.write(json.dumps(job) + "\n")
            worker.stdin.flush()
        answers = self._answers(self._seconds)
        found = [json.loads(answer) for answer in answers if answer]
        if len(found) < self._ranks or any(a["status"] not in (0, 2) for a in found):
            # What a failure left in a process, or in a group of them, is not for the next job.
            self._end()
        return self._summary(found)

    def _summary(self, found: list[dict[str, Any]]) -> Resumed:
        said = " ".join(" ".join(answer["said"].split()) for answer in found)
        verified = next((a["verify"] for a in found if a["verify"]), (None, ""))
        statuses = {answer["status"] for answer in found}
        steps = {answer["step"] for answer in found}
        if len(found) < self._ranks:
            statuses = {_HUNG}
        elif len(steps) > 1:
            statuses, said = {1}, f"ranks resumed from different steps. {said}"
        status = next((s for s in (_HUNG, 1, 2) if s in statuses), 0)
        return Resumed(status, min(steps, default=-1), said, verified[0], verified[1])

    def _start(self) -> None:
        port = str(free_port())
        for rank in range(self._ranks):
            numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": self._ranks}
            names = {**numbers, "LOCAL_WORLD_SIZE": self._ranks}
            address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            worker = commands.Started(
                [str(self._subject.python), str(_WORKER), str(RECIPE)],
                cwd=self._subject.repository,
                env={
                    **self._subject.environment(),
                    **{name: str(value) for name, value in names.items()},
                    **address,
                },
                piped=True,
            )
            self._workers.append(worker)
        for worker in self._workers:
            while worker.stdout.readline() not in ("ready\n", ""):
                pass

    def _answers(self, seconds: float) -> list[str]:
        """A line of each rank; fewer where one hangs or dies."""
        deadline = time.monotonic() + seconds
        lines: list[bytes] = []
        with selectors.DefaultSelector() as selector:
            for worker in self._workers:
                selector.register(worker.stdout.fileno(), selectors.EVENT_READ, bytearray())
            while selector.get_map() and (left := deadline - time.monotonic()) > 0:
                for key, _ in selector.select(left):
                    data = os.read(key.fd, 1 << 16)
                    key.data.extend(data)
                    if not data or data.endswith(b"\n"):
                        selector.unregister(key.fd)
                        lines.append(bytes(key.data) if data else b"")
        return [line.decode() for line in lines if line]

    def _end(self) -> None:
        for worker in self._workers:
            worker.kill()
            worker.stdin.close()
            worker.stdout.close()
        self._workers = []
