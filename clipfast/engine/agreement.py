"""What rank 0 finds, does or fails at, known to every rank; and what is the same on all of them."""

import hashlib
import pickle
import socket
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from clipfast.data.together import ALONE, Together
from clipfast.engine.config import ConfigError
from clipfast.engine.facts import contradictions, disagreement
from clipfast.engine.launch import Process

_Made = TypeVar("_Made")


def from_main(process: Process, make: Callable[[], _Made]) -> _Made:
    """Let rank 0 make something, and hand it to all. A collective.

    Args:
        process: this rank.
        make: called on rank 0 alone; what it returns can be pickled.

    Returns:
        What it returned, on every rank.

    Raises:
        ConfigError: on every rank, where it raised one.
        OSError: likewise, without its traceback on other ranks.
    """
    shared: list[Any] = [None]
    if process.is_main:
        try:
            shared = [(make(), None)]
        except (ConfigError, OSError) as error:
            shared = [(None, error)]
    dist.broadcast_object_list(shared)
    made, failure = shared[0]
    if failure is not None:
        raise failure
    value: _Made = made
    return value


class Ranks:
    """The ranks of a run, as loaders know them (``clipfast.data.together.Together``).

    Args:
        process: this rank; the process group is started.
    """

    def __init__(self, process: Process) -> None:
        self.rank, self.world_size = process.rank, process.world_size

    def share(self, make: Callable[[], _Made]) -> _Made:
        """See ``Together.share``. A collective."""
        shared = [_attempt(make)] if self.rank == 0 else [None]
        dist.broadcast_object_list(shared)
        return _made(shared)[0]

    def gather(self, make: Callable[[], _Made]) -> list[_Made]:
        """See ``Together.gather``. A collective."""
        shared: list[Any] = [None] * self.world_size
        dist.all_gather_object(shared, _attempt(make))
        return _made(shared)


def ranks_of(process: Process) -> Together:
    """The ranks of a run, once they know one another.

    Args:
        process: this rank.
    """
    return Ranks(process) if dist.is_initialized() else ALONE


def _attempt(make: Callable[[], Any]) -> tuple[Any, Exception | None]:
    """What it makes, or what it fails by."""
    try:
        return make(), None
    except (ValueError, OSError) as error:
        failure = error
    try:
        pickle.loads(pickle.dumps(failure))
    except Exception:  # of a class that wants other arguments than it keeps
        return None, (OSError if isinstance(failure, OSError) else ValueError)(str(failure))
    return None, failure


def _made(shared: Sequence[Any]) -> list[Any]:
    for _, failure in shared:
        if failure is not None:
            raise failure
    return [made for made, _ in shared]


def all_or_none(process: Process, make: Callable[[], _Made]) -> _Made:
    """Let every rank make its own, or end all where one cannot. A collective.

    Args:
        process: this rank.
        make: called on every rank.

    Returns:
        What it returned on this rank.

    Raises:
        ConfigError: on every rank, where one of them met a ValueError or an OSError; on the others
            it says which.
    """
    made: list[_Made] = []
    failure: Exception | None = None
    try:
        made.append(make())
    except (ValueError, OSError) as error:
        failure = error
    said = None if failure is None else str(failure)
    shared: list[Any] = [(socket.gethostname(), said)]
    if process.world_size > 1:
        shared = [None] * process.world_size
        dist.all_gather_object(shared, (socket.gethostname(), said))
    if failure is not None:
        raise ConfigError(str(failure)) from failure
    for rank, (host, theirs) in enumerate(shared):
        if theirs is not None:
            raise ConfigError(f"rank {rank} on {host}: {theirs}")
    return made[0]


def require_same(process: Process, facts: Mapping[str, str]) -> None:
    """Compare what has to be the same on every rank. A collective.

    Args:
        process: this rank.
        facts: by their names, for a person.

    Raises:
        ConfigError: on every rank, where some of them differ from rank 0.
    """
    if process.world_size == 1:
        return
    shared: list[Any] = [None] * process.world_size
    dist.all_gather_object(shared, (socket.gethostname(), dict(facts)))
    (first, theirs), *others = shared
    said = [
        f"rank {rank} on {host} has {'; '.join(different)}"
        for rank, (host, mine) in enumerate(others, start=1)
        if (different := contradictions(mine, theirs))
    ]
    if said:
        raise ConfigError(disagreement(first, said))


def weights_hash(model: nn.Module) -> str:
    """SHA-256 of all parameters, 12 hexadecimal digits.

    Args:
        model: whole, not yet cut up by ZeRO.
    """
    digest = hashlib.sha256()
    for parameter in model.parameters():
        data = parameter.detach().cpu().contiguous().view(-1)
        digest.update(data.view(torch.uint8).numpy().data)
    return digest.hexdigest()[:12]


def require_same_weights(process: Process, model: nn.Module, step: int) -> None:
    """Compare the weights that every rank holds a copy of, bit by bit in a sum. A collective.

    Args:
        process: this rank.
        model: of the engine; below ZeRO stage 3.
        step: optimizer steps taken.

    Raises:
        RuntimeError: on every rank, where the copies have come apart.
    """
    if process.world_size == 1:
        return
    bits = [_sum_of_bits(parameter.detach()) for parameter in model.parameters()]
    # Of another value in another tensor the sum is another one too: each has a factor of its own.
    factors = torch.arange(1, 2 * len(bits), 2, device=process.device)
    mine = (torch.stack(bits) * factors).sum()
    sums = [torch.empty_like(mine) for _ in range(process.world_size)]
    dist.all_gather(sums, mine)
    found = torch.stack(sums).tolist()
    if len(set(found)) == 1:
        return
    hosts: list[Any] = [None] * process.world_size
    dist.all_gather_object(hosts, socket.gethostname())
    usual = Counter(found).most_common(1)[0][0]
    odd = [f"rank {rank} on {hosts[rank]}" for rank in range(len(found)) if found[rank] != usual]
    raise RuntimeError(
        f"the ranks' copies of the weights are no longer the same after step {step}: those of "
        f"{', '.join(odd[:8])}{' and others' if len(odd) > 8 else ''} differ from the others'. A "
        "device that computes wrong does this. Nothing was saved: go on from an earlier "
        "checkpoint, without that host"
    )


def _sum_of_bits(values: Tensor) -> Tensor:
    kinds = {4: torch.int32, 2: torch.int16, 1: torch.int8, 8: torch.int64}
    return values.view(kinds[values.element_size()]).sum(dtype=torch.int64)
