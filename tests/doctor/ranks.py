"""The doctor in processes of its own, started with the variables that a launcher would set."""

import ctypes
import multiprocessing
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch

# Forked from a process that has imported all this: each rank is there in milliseconds.
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["tests.doctor.ranks", "clipfast.doctor.run"])
_NEW_NAMESPACE = 0x00020000  # CLONE_NEWNS of linux/sched.h
_PRIVATE = 1 << 18 | 1 << 14  # MS_PRIVATE and MS_REC of linux/mount.h


def rank_variables(rank: int, port: int, **others: object) -> dict[str, str]:
    """Of one of two ranks on this machine."""
    values = {
        **{"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2},
        **{"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, **others},
    }
    return {name: str(value) for name, value in values.items()}


def examine(
    folder: Path,
    *ranks: tuple[Mapping[str, str], Sequence[str]],
    plant: Callable[[int], object] | None = None,
) -> list[tuple[int, str]]:
    """Run the doctor on ranks, all at once.

    Args:
        folder: for what they print.
        ranks: variables and command line of each.
        plant: called in each process first, with its number.

    Returns:
        Exit status and printed text of each.
    """
    started = []
    for number, (variables, arguments) in enumerate(ranks):
        path = folder / f"printed{number}"
        process = _CONTEXT.Process(
            target=_rank, args=(str(path), dict(variables), list(arguments), plant, number)
        )
        process.start()
        started.append((process, path))
    results = []
    for process, path in started:
        process.join(60)
        if process.is_alive():
            process.kill()
            process.join()
        words = " ".join(path.read_text().split())
        results.append((process.exitcode, words))
    return results


def _rank(
    path: str,
    variables: dict[str, str],
    arguments: list[str],
    plant: Callable[[int], object] | None,
    number: int,
) -> None:
    from clipfast.doctor.run import run

    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
        os.environ.pop(name, None)
    os.environ.update(variables)
    file = os.open(path, os.O_WRONLY | os.O_CREAT)
    for descriptor in (1, 2):
        os.dup2(file, descriptor)
    tempfile.tempdir = str(Path(path).parent)
    # What is looked at is the same on a machine with GPUs.
    torch.cuda.is_available = lambda: False
    if plant is not None:
        plant(number)
    run(arguments)


def small_shared_memory(number: int) -> None:
    """Give this process alone a /dev/shm of one megabyte, nearly full.

    Raises:
        PermissionError: this user may not.
    """
    system = ctypes.CDLL(None, use_errno=True)
    mounted = system.unshare(_NEW_NAMESPACE) or system.mount(b"none", b"/", None, _PRIVATE, None)
    if mounted or system.mount(b"tmpfs", b"/dev/shm", b"tmpfs", 0, b"size=1m"):
        raise PermissionError(os.strerror(ctypes.get_errno()))
    Path("/dev/shm/left_by_a_run").write_bytes(bytes(900_000))


def one_gpu_for_both(number: int) -> None:
    """Let every rank see the same GPU, under whatever index."""
    from clipfast.doctor.checks import devices

    devices.identity = lambda device: {"name": "H100", "uuid": "GPU-7f", "pci": "0000:1b:00"}
