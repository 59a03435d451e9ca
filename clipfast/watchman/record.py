"""Where a rank is, in memory that it shares with its guard: written without a system call."""

import mmap
import struct
from dataclasses import dataclass

PARTS = (
    *("start", "data", "forward", "loss", "backward", "update", "agreement", "metrics"),
    *("evaluation", "save", "export", "end"),
)
_PLACE = struct.Struct("<QqQ")
_PAST = struct.Struct("<Qd")
_PAST_START = 64
SIZE = mmap.PAGESIZE


@dataclass(frozen=True)
class Place:
    """Where a rank is.

    Attributes:
        count: grows with every mark that the rank sets.
        step: optimizer steps taken.
        part: of the step or of the run, one of ``PARTS``.
    """

    count: int = 0
    step: int = 0
    part: str = "start"


class Record:
    """The place of one rank.

    Args:
        descriptor: of a file of ``SIZE`` bytes that both processes have open.
    """

    def __init__(self, descriptor: int) -> None:
        self._memory = mmap.mmap(descriptor, SIZE)

    def write(self, place: Place) -> None:
        """Replace it."""
        _PLACE.pack_into(self._memory, 0, place.count, place.step, PARTS.index(place.part))

    def read(self) -> Place:
        """What was written last."""
        count, step, part = _PLACE.unpack_from(self._memory, 0)
        # Written by three stores: a reader between them may see a part of another moment.
        return Place(count, step, PARTS[min(part, len(PARTS) - 1)])

    def pass_through(self, part: str, seconds: float) -> None:
        """Note that the rank was through with a part, and in what time."""
        times, longest = self.past(part)
        where = _PAST_START + _PAST.size * PARTS.index(part)
        _PAST.pack_into(self._memory, where, times + 1, max(longest, seconds))

    def past(self, part: str) -> tuple[int, float]:
        """How often the rank was through with a part, and its longest time in seconds."""
        where = _PAST_START + _PAST.size * PARTS.index(part)
        return _PAST.unpack_from(self._memory, where)
