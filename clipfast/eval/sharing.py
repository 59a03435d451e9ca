"""How ranks share the rows of one set."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


class OtherRankFailed(ValueError):
    """Another rank cannot go on, and says why."""


@dataclass
class Waiting:
    """Time that a rank has spent where parts of ranks meet.

    Attributes:
        seconds: so far.
    """

    seconds: float = 0.0

    @contextmanager
    def counted(self) -> Iterator[None]:
        """Time inside counts."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.seconds += time.perf_counter() - began


@dataclass(frozen=True)
class Sharing:
    """One rank among several that each take one contiguous part.

    A rank that fails says so with ``tell``. The others learn it in the next collective that they
    come to, and raise there instead of waiting for it.

    Args:
        rank: this one.
        world_size: how many there are; beyond 1 torch's process group must be there.
        waiting: what this rank has waited for the others.
    """

    rank: int = 0
    world_size: int = 1
    waiting: Waiting = field(default_factory=Waiting, compare=False, repr=False)

    def part(self, rows: int) -> range:
        """The rows of this rank; sizes differ by one at most.

        Args:
            rows: how many there are in all.
        """
        return range(rows * self.rank // self.world_size, rows * (self.rank + 1) // self.world_size)

    def gather(self, mine: Tensor, rows: int) -> Tensor:
        """All rows, of the parts of all ranks. A collective.

        Args:
            mine: ``[len(part(rows)), ...]``, on the CPU.
            rows: how many there are in all.

        Returns:
            ``[rows, ...]`` on the CPU, the same on every rank.

        Raises:
            OtherRankFailed: one of the others did.
        """
        if self.world_size == 1:
            return mine
        self.wait()
        device = "cuda" if dist.get_backend() == "nccl" else "cpu"
        sizes = [len(Sharing(rank, self.world_size).part(rows)) for rank in range(self.world_size)]
        longest = max(sizes)
        padded = mine.new_zeros(longest, *mine.shape[1:], device=device)
        padded[: len(mine)] = mine
        blocks = [torch.empty_like(padded) for _ in sizes]
        with self.waiting.counted():
            dist.all_gather(blocks, padded)
        return torch.cat([b[:size].cpu() for b, size in zip(blocks, sizes, strict=True)])

    def gather_objects(self, mine: Any) -> list[Any]:
        """What each rank has, in rank order. A collective.

        Args:
            mine: anything small that pickles.

        Raises:
            OtherRankFailed: one of the others did.
        """
        if self.world_size == 1:
            return [mine]
        found = self._exchange(None, mine)
        said = [why for why, _ in found if why is not None]
        if said:
            raise OtherRankFailed(said[0])
        return [value for _, value in found]

    def wait(self) -> None:
        """Wait for all ranks. A collective.

        Raises:
            OtherRankFailed: one of the others did.
        """
        self.gather_objects(None)

    def tell(self, error: Exception) -> None:
        """Tell the other ranks that this one ends, in the collective that they come to next.

        Args:
            error: why.
        """
        # Where they are gone themselves there is nobody to tell.
        with suppress(Exception):
            host, why = socket.gethostname(), str(error) or type(error).__name__
            self._exchange(f"rank {self.rank} on {host} failed: {why}", None)

    def _exchange(self, why: str | None, mine: Any) -> list[tuple[str | None, Any]]:
        found: list[Any] = [None] * self.world_size
        with self.waiting.counted():
            dist.all_gather_object(found, (why, mine))
        return found
