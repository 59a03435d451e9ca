"""Contenders in turns, each in a process of its own that is held to the same cores.

A run opens the loader anew, leaves its first batches untimed, and takes batches for some seconds.
It has the time that passed, and the processors' time of the process and its workers. Nobody else's
threads or read-ahead are under way meanwhile.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import resource
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import torch

from benchmarks.parts.common.contest import Absence, reason_of
from benchmarks.parts.common.harness import Row
from benchmarks.parts.data.check import check
from benchmarks.parts.data.contenders import CONTENDERS, Contender, Setting
from benchmarks.parts.suite.process import end_with_parent

WARM_UP = 4
_PATIENCE = 300
_TICK = os.sysconf("SC_CLK_TCK")
# Fields of /proc/PID/stat behind the name: time in user and in system mode.
_USER, _SYSTEM = 11, 12


@dataclass(frozen=True)
class Timing:
    """One run.

    Attributes:
        images: That it gave.
        seconds: That passed.
        cpu_seconds: Of all its processors.
    """

    images: int
    seconds: float
    cpu_seconds: float


def run_once(contender: Contender, setting: Setting, seconds: float) -> Timing:
    """Take batches for some time."""
    with closing(contender.open(setting)) as batches:
        for _ in range(WARM_UP):
            next(batches)
        cpu, start, images = _cpu_seconds(), time.perf_counter(), 0
        while True:
            pixels, _ = next(batches)
            images += len(pixels)
            passed = time.perf_counter() - start
            if passed >= seconds:
                break
        if pixels.is_cuda:
            torch.cuda.synchronize()
            passed = time.perf_counter() - start
        return Timing(images, passed, _cpu_seconds() - cpu)


def _cpu_seconds() -> float:
    """Of this process and its children that live."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    total = used.ru_utime + used.ru_stime
    for child in multiprocessing.active_children():
        with contextlib.suppress(OSError), open(f"/proc/{child.pid}/stat") as file:
            fields = file.read().rpartition(")")[2].split()
            total += (int(fields[_USER]) + int(fields[_SYSTEM])) / _TICK
    return total


def _serve(
    connection: Connection, key: str, setting: Setting, seconds: float, cores: set[int]
) -> None:
    """The child's program: a check, then a run whenever it is asked for one."""
    end_with_parent()
    os.sched_setaffinity(0, cores)
    torch.set_num_threads(1)
    # A spawned process would spawn its workers, too; OpenCLIP's are forked.
    multiprocessing.set_start_method("fork", force=True)
    try:
        connection.send(check(CONTENDERS[key], setting))
        while connection.recv():
            connection.send(run_once(CONTENDERS[key], setting, seconds))
    except Exception as error:  # whatever it is, it is a line of the report
        connection.send(reason_of(error))


class _Child:
    """A contender's process."""

    def __init__(self, contender: Contender, setting: Setting, seconds: float) -> None:
        self.contender = contender
        # Spawned: DALI's threads and locks would not survive a fork, nor would CUDA.
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        cores = set(sorted(os.sched_getaffinity(0))[: setting.cores])
        self._process = context.Process(
            target=_serve, args=(theirs, contender.key, setting, seconds, cores)
        )
        self._process.start()
        theirs.close()
        self.errors = self._answer()

    def run(self) -> Timing:
        """Another run."""
        self._connection.send(True)
        return self._answer()

    def close(self) -> None:
        """End it."""
        with contextlib.suppress(OSError):
            self._connection.send(False)
        self._process.join(10)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()

    def _answer(self) -> Any:
        try:
            answer = f"not measured: no answer in {_PATIENCE} s"
            if self._connection.poll(_PATIENCE):
                answer = self._connection.recv()
        except EOFError:
            answer = f"not measured: its process ended with status {self._process.exitcode}"
        if isinstance(answer, str):
            self.close()
            raise _Failed(answer)
        return answer


class _Failed(Exception):
    """A contender has no row; says why."""


def measure_case(
    keys: Sequence[str],
    setting: Setting,
    runs: int,
    seconds: float,
    tick: Callable[[], object],
    **fields: Any,
) -> tuple[list[Row], list[Absence]]:
    """Check and time contenders on the same shards and cores.

    Args:
        keys: Of CONTENDERS.
        setting: What they are given.
        runs: Timed runs of each, in turns.
        seconds: Of a run, about.
        tick: Called after each run.
        **fields: Copied into each row.

    Returns:
        A row per contender that passed, and those without one.
    """
    absent, children = [], []
    timings: dict[str, list[Timing]] = {}
    try:
        for key in keys:
            contender = CONTENDERS[key]
            try:
                children.append(_Child(contender, setting, seconds))
                timings[key] = []
            except _Failed as failed:
                absent.append(Absence(contender.title, str(failed), contender.is_ours))
        for _ in range(runs):
            for child in list(children):
                try:
                    timings[child.contender.key].append(child.run())
                except _Failed as failed:
                    name = child.contender.name
                    absent.append(Absence(name, str(failed), child.contender.is_ours))
                    children.remove(child)
                tick()
        rows = [_row(child, timings, setting, fields) for child in children]
    finally:
        for child in children:
            child.close()
    return rows, absent


def _row(
    child: _Child, timings: dict[str, list[Timing]], setting: Setting, fields: dict[str, Any]
) -> Row:
    mine = timings[child.contender.key]
    per_batch = sorted(1e3 * t.seconds / t.images * setting.batch for t in mine)
    cpu = statistics.median(t.cpu_seconds / t.images for t in mine)
    row: Row = {
        "name": child.contender.name,
        "contender": child.contender.key,
        "checked": True,
        "device": setting.device,
        "runs": len(mine),
        "median_ms": statistics.median(per_batch),
        "p20_ms": _quantile(per_batch, 0.2),
        "p80_ms": _quantile(per_batch, 0.8),
        "items_per_s": statistics.median(t.images / t.seconds for t in mine),
        "cpu_us_per_image": 1e6 * cpu,
        "items_per_core_s": 1 / cpu,
        "batch": setting.batch,
        "image_size": setting.image_size,
        "cores": setting.cores,
        **fields,
        **child.errors,
    }
    for base, theirs in timings.items():
        if base.startswith("clipfast") and base != child.contender.key and len(theirs) == len(mine):
            pairs = list(zip(mine, theirs, strict=True))
            told = CONTENDERS[base].name
            row[f"ratio_to_{told}"] = statistics.median(
                (b.images / b.seconds) / (a.images / a.seconds) for a, b in pairs
            )
            row[f"cpu_ratio_to_{told}"] = statistics.median(
                (a.cpu_seconds / a.images) / (b.cpu_seconds / b.images) for a, b in pairs
            )
    return row


def _quantile(ordered: Sequence[float], share: float) -> float:
    values = torch.tensor(ordered, dtype=torch.float64)
    return values.quantile(share).item()
