"""What a step is."""

from __future__ import annotations

from typing import Any, Protocol, TypeVar


class Item(Protocol):
    """What one partial result is made of: a shard, a piece of a text, a range of digests."""

    @property
    def part(self) -> str:
        """Name of its file without ending. It tells items of one job apart, and tells an item from
        what it was before it changed."""


ItemT = TypeVar("ItemT", bound=Item, contravariant=True)


class Step(Protocol[ItemT]):
    """A frozen dataclass of paths and numbers: it is pickled, and holds nothing that is open."""

    @property
    def name(self) -> str:
        """Of the folder of its partial results."""

    def options(self) -> dict[str, Any]:
        """All that decides what ``table`` gives beside its item, as JSON. Not where things lie."""

    def table(self, item: ItemT) -> Any:
        """The partial result, a ``pyarrow.Table``: a function of the options and the item alone.

        Raises:
            ValueError: the item cannot be read or does not fit.
            OSError: a file cannot be read.
        """
