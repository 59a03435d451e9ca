"""Processes of this machine that stand for the ranks of a plan."""

import multiprocessing
import os
import socket
from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar

import torch

from clipfast.engine.launch import Process, cpu_threads

_Found = TypeVar("_Found")
_PATIENCE = 900.0


def on_ranks(process: Process, work: Callable[..., _Found], *arguments: Any) -> list[_Found]:
    """Call a function in a process for each rank, all at the same time.

    Args:
        process: the first rank.
        work: called with a rank's process and the arguments; can be imported by its name.
        arguments: of it.

    Returns:
        What it returned, by rank.

    Raises:
        RuntimeError: a rank failed, or took longer than 15 minutes.
    """
    context = multiprocessing.get_context("spawn")
    queue: Any = context.SimpleQueue()
    port = _free_port()
    workers = [
        context.Process(
            target=_rank,
            args=(replace(process, rank=rank, local_rank=rank), port, work, arguments, queue),
            daemon=True,
        )
        for rank in range(process.world_size)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(_PATIENCE)
    codes = [worker.exitcode for worker in workers]
    for worker in workers:
        worker.kill()
    if any(codes):
        raise RuntimeError(f"the ranks of {work.__name__} ended with {codes}; see above")
    found = dict(queue.get() for _ in workers)
    return [found[rank] for rank in sorted(found)]


def _rank(
    process: Process,
    port: int,
    work: Callable[..., Any],
    arguments: tuple[Any, ...],
    queue: Any,
) -> None:
    os.environ.update(
        RANK=str(process.rank),
        LOCAL_RANK=str(process.local_rank),
        WORLD_SIZE=str(process.world_size),
        LOCAL_WORLD_SIZE=str(process.local_world_size),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
    )
    torch.set_num_threads(cpu_threads(process))
    queue.put((process.rank, work(process, *arguments)))


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
