"""What a launcher says to the processes that it starts: read, and checked to be whole.

    RANK, WORLD_SIZE                  over all nodes
    LOCAL_RANK, LOCAL_WORLD_SIZE      on this node; DeepSpeed's launcher calls the latter LOCAL_SIZE
    MASTER_ADDR, MASTER_PORT          where rank 0 is met

A process that lacks some of them would wait for others that never come, or train alone beside them.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass

from clipfast.engine.config import ConfigError

_NEEDED = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
_REMEDY = (
    "Start with `deepspeed --num_gpus N RECIPE` or `torchrun --nproc-per-node N RECIPE`, which set "
    "all of them; for one process unset RANK, LOCAL_RANK and WORLD_SIZE"
)
# Programs that start processes and number them in variables of their own: number, how many.
_OTHERS = {
    "srun": ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS"),
    "mpirun": ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
    "mpiexec": ("PMI_RANK", "PMI_SIZE"),
}


@dataclass(frozen=True)
class Launched:
    """Which process this is.

    Attributes:
        rank: over all nodes.
        local_rank: on this node.
        world_size: number of processes.
        local_world_size: number of processes on this node.
    """

    rank: int
    local_rank: int
    world_size: int
    local_world_size: int


def claims_to_be_main(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether this process is to speak for the run, however wrong the rest may be."""
    return environment.get("RANK", "0").strip() in ("", "0")


def processes_claimed(environment: Mapping[str, str] = os.environ) -> int:
    """The number of processes, 1 where it is no number."""
    text = environment.get("WORLD_SIZE", "1")
    return int(text) if text.strip().isdecimal() else 1


def read_environment(environment: Mapping[str, str] = os.environ) -> Launched:
    """Read the launcher's variables, or stand alone without them.

    Args:
        environment: the process's.

    Raises:
        ConfigError: a variable is missing, no number, out of range, or they contradict each other;
            or a launcher started several processes that know nothing of each other.
    """
    rank = _number(environment, "RANK", 0)
    world_size = _number(environment, "WORLD_SIZE", 1)
    local_rank = _number(environment, "LOCAL_RANK", 0)
    if world_size < 1:
        raise ConfigError(f"the environment has WORLD_SIZE={world_size}. {_REMEDY}")
    if rank == local_rank == 0 and world_size == 1:
        _refuse_other_launchers(environment)
        return Launched(0, 0, 1, 1)
    missing = [name for name in _NEEDED if not environment.get(name)]
    if missing:
        there = [f"{name}={environment[name]}" for name in _NEEDED if environment.get(name)]
        raise ConfigError(
            f"the environment has {', '.join(there)} and lacks {', '.join(missing)}. {_REMEDY}"
        )
    name = "LOCAL_WORLD_SIZE" if environment.get("LOCAL_WORLD_SIZE") else "LOCAL_SIZE"
    local_world_size = _number(environment, name, world_size)
    for what, value, limit, of in (
        ("RANK", rank, world_size, "WORLD_SIZE"),
        ("LOCAL_RANK", local_rank, local_world_size, name),
        ("LOCAL_RANK", local_rank, rank + 1, "RANK + 1"),
        (name, local_world_size, world_size + 1, "WORLD_SIZE + 1"),
    ):
        if not 0 <= value < limit:
            raise ConfigError(
                f"the environment has {what}={value}, which has to be below {of} = {limit} and not "
                f"negative. {_REMEDY}"
            )
    port = _number(environment, "MASTER_PORT", 0)
    if not 0 < port < 2**16:
        raise ConfigError(
            f"the environment has MASTER_PORT={port}: a port is a number from 1 to 65535. Give a "
            "free one, the same on all nodes (deepspeed --master_port, torchrun --master-port)"
        )
    return Launched(rank, local_rank, world_size, local_world_size)


def _number(environment: Mapping[str, str], name: str, default: int) -> int:
    text = environment.get(name, "").strip()
    if not text:
        return default
    try:
        return int(text)
    except ValueError:
        raise ConfigError(
            f"the environment has {name}={text!r}, which is no whole number. {_REMEDY}"
        ) from None


def _refuse_other_launchers(environment: Mapping[str, str]) -> None:
    for program, (number, count) in _OTHERS.items():
        if number in environment and environment.get(count, "1").isdecimal():
            tasks = int(environment.get(count, "1"))
            if tasks > 1:
                raise ConfigError(
                    f"{program} started {tasks} processes ({number}={environment[number]}), and "
                    "nothing tells them of each other (no RANK, WORLD_SIZE): each would train "
                    f"alone. Let {program} start one torchrun a node (torchrun --nnodes N "
                    "--nproc-per-node GPUS --rdzv-backend c10d --rdzv-endpoint HOST:PORT RECIPE)"
                )
