"""Run a function in several gloo processes and collect what each returns."""

import faulthandler
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


def run_ranks(world_size: int, function: Callable[..., Any], *arguments: Any) -> list[Any]:
    """Call ``function(*arguments)`` in ``world_size`` processes of one gloo group.

    Args:
        world_size: number of processes.
        function: importable by the children; what it returns must be loadable by ``torch.load``.
        arguments: the same for every rank.

    Returns:
        What each rank returned, in rank order.
    """
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(_child, (world_size, folder, function, arguments), nprocs=world_size)
        return [torch.load(Path(folder) / f"{rank}.pt") for rank in range(world_size)]


def _child(
    rank: int, world_size: int, folder: str, function: Callable[..., Any], arguments: tuple
) -> None:
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
