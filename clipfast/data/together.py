"""Processes that look at one store: what one of them finds, all know."""

from collections.abc import Callable
from typing import Protocol, TypeVar

T = TypeVar("T")


class Together(Protocol):
    """Ranks that read the same shards. Every method is called by all of them, in one order.

    Attributes:
        rank: of this process.
        world_size: number of processes.
    """

    rank: int
    world_size: int

    def share(self, make: Callable[[], T]) -> T:
        """What the first of them makes; what it fails by is raised by all."""

    def gather(self, make: Callable[[], T]) -> list[T]:
        """What each of them makes, by rank; what one of them fails by is raised by all."""


class Alone:
    """One process, which knows of no other."""

    rank = 0
    world_size = 1

    def share(self, make: Callable[[], T]) -> T:
        """See `Together.share`."""
        return make()

    def gather(self, make: Callable[[], T]) -> list[T]:
        """See `Together.gather`."""
        return [make()]


ALONE = Alone()
