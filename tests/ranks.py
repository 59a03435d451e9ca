"""Run a function in several gloo processes and collect what each returns.

The processes are forked from one that has imported torch, DeepSpeed and the engine and done nothing
else: those imports cost a rank more than most tests do. ``tests/preloaded.py`` says what.
"""

import faulthandler
import multiprocessing
import os
import random
import sys
import tempfile
from collections.abc import Callable
from multiprocessing import reduction
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


def run_ranks(
    world_size: int, function: Callable[..., Any], *arguments: Any, fresh: bool = False
) -> list[Any]:
    """Call ``function(*arguments)`` in ``world_size`` processes of one gloo group.

    Args:
        world_size: number of processes.
        function: importable by the children; what it returns must be loadable by ``torch.load``.
        arguments: the same for every rank.
        fresh: start interpreters that have imported nothing.

    Returns:
        What each rank returned, in rank order.
    """
    method = "spawn" if fresh else "forkserver"
    if not fresh:
        multiprocessing.set_forkserver_preload(["tests.preloaded"])
    with tempfile.TemporaryDirectory() as folder:
        surroundings = (dict(os.environ), Descriptor(1), Descriptor(2))
        mp.start_processes(
            _child,
            (surroundings, world_size, folder, function, arguments),
            nprocs=world_size,
            start_method=method,
        )
        return [torch.load(Path(folder) / f"{rank}.pt") for rank in range(world_size)]


class Descriptor:
    """A file that is open here, for a process that the fork server starts: it has files of its own.

    Args:
        number: of the descriptor.
    """

    def __init__(self, number: int) -> None:
        self.number = number

    def __reduce__(self) -> tuple[Callable[[Any], int], tuple[Any]]:
        return _received, (reduction.DupFd(self.number),)


def _received(descriptor: Any) -> int:
    return descriptor.detach()


def _child(
    rank: int,
    surroundings: tuple[dict[str, str], int, int],
    world_size: int,
    folder: str,
    function: Callable[..., Any],
    arguments: tuple,
) -> None:
    variables, *descriptors = surroundings
    for target, descriptor in enumerate(descriptors, start=1):
        # A spawned process has them under their own numbers.
        if descriptor != target:
            os.dup2(descriptor, target)
            os.close(descriptor)
    os.environ.clear()
    os.environ.update(variables)
    # Those of a fork are alike.
    random.seed()
    faulthandler.enable()
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world_size
    )
    torch.save(function(*arguments), Path(folder) / f"{rank}.pt")
    # Nobody leaves before all are done; then without taking the group down, and without static
    # destructors: a few processes aborted there, in threads of torch and gloo, and why is unknown.
    dist.barrier()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
