"""Where this process runs: rank, device, threads."""

import ctypes
import os
import socket
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch

from clipfast.devices import PlannedGpu
from clipfast.engine.config import ConfigError
from clipfast.engine.deepspeed.helper import load_helper
from clipfast.engine.environment import read_environment
from clipfast.engine.rendezvous import meet, release, store_of_attempt

_SHARED = Path("/dev/shm")
_BUFFERS = "deepspeed_allreduce_buffer_"
_STALE_SECONDS = 60.0


@dataclass(frozen=True)
class Process:
    """One of the run's processes.

    Attributes:
        rank: over all nodes.
        local_rank: on this node; picks the GPU.
        world_size: number of processes.
        local_world_size: number of processes on this node.
        device: where it computes.
        planned: the GPU that a run is only planned for; None asks the one that is here.
    """

    rank: int
    local_rank: int
    world_size: int
    local_world_size: int
    device: torch.device
    planned: PlannedGpu | None = None

    @property
    def is_main(self) -> bool:
        """Whether this process prints and writes."""
        return self.rank == 0

    @property
    def counted_on(self) -> torch.device:
        """Where a pass is counted: operators of a GPU that is not here are not asked; those of the
        CPU return the same shapes."""
        return torch.device("cpu") if self.planned else self.device


def current_process() -> Process:
    """Read the launcher's variables (deepspeed, torchrun), or stand alone without them.

    Raises:
        ConfigError: they are not whole, or contradict each other; more local ranks than GPUs.
    """
    launched = read_environment()
    device = torch.device("cpu")
    if torch.cuda.is_available():
        if launched.local_rank >= torch.cuda.device_count():
            raise ConfigError(
                f"local rank {launched.local_rank} has no GPU of its own: this node has "
                f"{torch.cuda.device_count()}. Start at most that many processes on it"
            )
        device = torch.device("cuda", launched.local_rank)
    return Process(**vars(launched), device=device)


def cpu_threads(process: Process) -> int:
    """Threads that torch computes with on this rank: its share of the node's cores on a CPU, unless
    the environment says how many."""
    if process.device.type == "cuda" or "OMP_NUM_THREADS" in os.environ:
        return torch.get_num_threads()
    return max(1, len(os.sched_getaffinity(0)) // process.local_world_size)


def start(process: Process, uses_tf32: bool = False) -> None:
    """Initialise the process group and set the backends once.

    Args:
        process: this rank.
        uses_tf32: whether a GPU takes products and convolutions of float32 in TF32.

    Raises:
        ConfigError: the ranks cannot meet, see `rendezvous.meet`.
    """
    meet(process.rank, process.world_size).close()
    import deepspeed

    for name, value in {
        "RANK": process.rank,
        "LOCAL_RANK": process.local_rank,
        "WORLD_SIZE": process.world_size,
        "LOCAL_SIZE": process.local_world_size,
        "MASTER_ADDR": "127.0.0.1",
    }.items():
        os.environ.setdefault(name, str(value))
    if "MASTER_PORT" not in os.environ:
        os.environ["MASTER_PORT"] = str(_free_port())

    if process.device.type == "cuda":
        torch.cuda.set_device(process.device)
        torch.backends.cudnn.benchmark = True
        set_products(uses_tf32)
    elif "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(cpu_threads(process))
    if process.device.type == "cpu":
        load_helper()
    backend = "nccl" if process.device.type == "cuda" else "gloo"
    if (store := store_of_attempt()) is not None:
        torch.distributed.init_process_group(
            backend,
            store=store,
            rank=process.rank,
            world_size=process.world_size,
            device_id=process.device if backend == "nccl" else None,
        )
    deepspeed.init_distributed(
        dist_backend=backend,
        auto_mpi_discovery=False,
        verbose=False,
    )
    release()
    if process.device.type == "cpu":
        _release_shared_memory(process)


def set_products(uses_tf32: bool) -> None:
    """Tell torch how a GPU takes float32 products and convolutions; our kernels follow it.

    Args:
        uses_tf32: in TF32, or else in full. Torch's own defaults are in full for products, and
            TF32 for convolutions.
    """
    torch.backends.cudnn.allow_tf32 = uses_tf32
    torch.backends.cuda.matmul.allow_tf32 = uses_tf32


def shared_buffer(process: Process) -> Path:
    """DeepSpeed's all-reduce buffer on the CPU: 66 MB a rank."""
    address, port = os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"]
    name = f"{_BUFFERS}{os.getuid()}_{address}_{port}_{process.rank}"
    return _SHARED / name


def _release_shared_memory(process: Process) -> None:
    """Unlink DeepSpeed's buffer, which 0.19 never does: it would stay in memory for good. Every
    local rank has mapped it by the barrier."""
    torch.distributed.barrier()
    shared_buffer(process).unlink(missing_ok=True)
    if process.local_rank == 0:
        remove_stale_buffers()


def remove_stale_buffers(folder: Path = _SHARED) -> None:
    """Unlink the buffers of runs that were killed before they could: those that no process has.

    Args:
        folder: where they are.
    """
    old = time.time() - _STALE_SECONDS
    found = {}
    for path in folder.glob(f"{_BUFFERS}{os.getuid()}_*"):
        with suppress(OSError):
            # A run that starts at this moment may have made it and not mapped it yet.
            if path.stat().st_mtime < old:
                found[str(path)] = path
    if not found:
        return
    for maps in Path("/proc").glob("[0-9]*/maps"):
        with suppress(OSError):
            text = maps.read_text()
            found = {name: path for name, path in found.items() if name not in text}
    for path in found.values():
        path.unlink(missing_ok=True)


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def keep_freed_memory() -> None:
    """Let glibc reuse large blocks instead of returning them to the kernel.

    Each activation of some megabytes is otherwise mapped, faulted in page by page and unmapped
    again at every step: measured at 5% to 15% of a CPU training step. Called once the model and the
    optimizer stand, so that what they freed while they were built goes back.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return
    trim_threshold, mmap_max = -1, -4
    mallopt(mmap_max, 0)
    mallopt(trim_threshold, 2**31 - 1)
