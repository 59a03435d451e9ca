"""How long a step takes, part by part: what computes, what travels, and what hides behind what.

    towers      FLOP / (utilisation * peak); in micro-batches the forward passes run twice
    loss        8 G D FLOP a pair at the same rate, 6 where logits are kept
    optimizer   bytes that AdamW reads and writes / the memory's rate
    exposed     of each transfer what exceeds the part that it is behind; on a CPU all of it

A transfer that is ``behind`` something costs nothing until it takes longer than that.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from clipfast.loss.traffic import Transfer

# What a transfer may be behind, and the parts that it then runs beside.
_BEHIND = {
    "": (),
    "image tower": ("image forward",),
    "image tower's backward": ("image backward",),
    "backward": ("image backward", "text backward"),
    "forward and backward": ("text forward", "image forward", "image backward", "text backward"),
}


@dataclass(frozen=True)
class Travel:
    """A transfer in time.

    Attributes:
        transfer: what travels.
        seconds: that it takes.
        exposed: of these, during which the ranks wait.
    """

    transfer: Transfer
    seconds: float
    exposed: float


@dataclass(frozen=True)
class Timeline:
    """A step in time.

    Attributes:
        compute: seconds by part.
        travels: transfers.
    """

    compute: dict[str, float]
    travels: tuple[Travel, ...]

    @property
    def exposed(self) -> float:
        """Seconds that ranks wait for each other's bytes."""
        return sum(travel.exposed for travel in self.travels)

    @property
    def seconds(self) -> float:
        """Of the step."""
        return sum(self.compute.values()) + self.exposed


def timeline(
    compute: dict[str, float],
    transfers: Sequence[tuple[Transfer, float]],
    overlaps: bool,
) -> Timeline:
    """Lay transfers behind what they run beside.

    Args:
        compute: seconds by part.
        transfers: each with the seconds that it takes.
        overlaps: transfers may run beside a part at all; on a CPU they do not.
    """
    room = {
        behind: sum(compute.get(part, 0.0) for part in parts) * overlaps
        for behind, parts in _BEHIND.items()
    }
    travels = []
    for transfer, seconds in transfers:
        hidden = min(seconds, room.get(transfer.behind, 0.0))
        if transfer.behind in room:
            room[transfer.behind] -= hidden
        travels.append(Travel(transfer, seconds, seconds - hidden))
    return Timeline(compute, tuple(travels))
