"""Epochs in a process of its own, on cores that the server does not use."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import resource
import time
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import torch

from benchmarks.parts.common.contest import NotMeasured, reason_of
from benchmarks.parts.stores.loaders import LOADERS, Task
from benchmarks.parts.stores.servers import KEYS
from benchmarks.parts.suite.process import end_with_parent

_PATIENCE = 600


@dataclass(frozen=True)
class Epoch:
    """What one epoch took, and what it gave.

    Attributes:
        seconds: From the first request for a sample to the last batch.
        cpu_seconds: Of the process, its workers and their programs.
        samples: A digest of each, in order.
        crops: See ``Read``.
    """

    seconds: float
    cpu_seconds: float
    samples: list[bytes]
    crops: str


def run_epoch(name: str, task: Task) -> Epoch:
    """Read one.

    Args:
        name: Of LOADERS.
        task: What.
    """
    steps = LOADERS[name](task)
    next(steps)
    cpu, start = _cpu_seconds(), time.perf_counter()
    read = next(steps)
    seconds = time.perf_counter() - start
    # Workers end with their loader, and count once they have been waited for.
    for _ in steps:
        pass
    for child in multiprocessing.active_children():
        child.join(10)
    return Epoch(seconds, _cpu_seconds() - cpu, read.samples(), read.crops)


def _cpu_seconds() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


def _serve(connection: Connection, name: str, cores: set[int]) -> None:
    end_with_parent()
    os.sched_setaffinity(0, cores)
    os.environ.update(KEYS)
    torch.set_num_threads(1)
    # A spawned process would spawn its workers, too; OpenCLIP's are forked.
    multiprocessing.set_start_method("fork", force=True)
    while (task := connection.recv()) is not None:
        try:
            connection.send(run_epoch(name, task))
        except Exception as error:  # whatever it is, it is a line of the report
            connection.send(reason_of(error))


class Contender:
    """A process that reads epochs.

    Args:
        name: Of LOADERS.
        cores: That it may use.
    """

    def __init__(self, name: str, cores: set[int]) -> None:
        self.name = name
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, name, cores))
        self._process.start()
        theirs.close()

    def run(self, task: Task) -> Epoch:
        """One epoch.

        Raises:
            NotMeasured: It has failed; says how.
        """
        self._connection.send(task)
        if not self._connection.poll(_PATIENCE):
            raise NotMeasured(f"{self.name}: no epoch in {_PATIENCE} s")
        answer: Any = self._connection.recv()
        if isinstance(answer, str):
            raise NotMeasured(f"{self.name}: {answer}")
        assert isinstance(answer, Epoch)
        return answer

    def close(self) -> None:
        """End it."""
        with contextlib.suppress(OSError):
            self._connection.send(None)
        self._process.join(10)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()


def seen_once(samples: Sequence[bytes], expected: Sequence[bytes]) -> str:
    """What is wrong with a set of samples; "" where each came once and no other did.

    Args:
        samples: Digests.
        expected: Those of all that there are.
    """
    lost = len(set(expected) - set(samples))
    other = len(set(samples) - set(expected))
    again = len(samples) - len(set(samples))
    if not (lost or other or again):
        return ""
    return f"{lost:,} samples lost, {again:,} seen again, {other:,} unknown"
