"""Where the work is done: ``pool``, ``ray`` or ``ray:ADDRESS``."""

from __future__ import annotations

import os
from concurrent.futures import Executor

from clipfast.data.workers import make_executor


def open_engine(engine: str, workers: int | None, most: int) -> tuple[Executor, int]:
    """An executor, and how many tasks it does at a time.

    Args:
        engine: "pool": processes of this machine. "ray": a Ray of this machine, which is started.
            "ray:ADDRESS": a cluster that runs.
        workers: processes, or tasks of Ray at a time. None: the cores there are.
        most: tasks that there are, at least one; no more processes are started.

    Raises:
        ValueError: there is no such engine, or fewer than one worker is asked for.
    """
    kind, _, address = engine.partition(":")
    if kind == "pool" and not address:
        cores = len(os.sched_getaffinity(0))
        return make_executor(min(cores if workers is None else workers, most))
    if kind == "ray" and not engine.endswith(":"):
        from clipfast.curate.engine.cluster import open_ray

        return open_ray(address or None, workers)
    raise ValueError(f"no engine {engine!r}; there are pool, ray and ray:ADDRESS")
