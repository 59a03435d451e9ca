"""Whether a run still goes on, judged from where its ranks are. No clock, no socket, no process."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from clipfast.watchman.record import PARTS, Place

# A rank is silent where nothing comes from its guard for so much of the patience, within these.
_SILENT = 0.75
_SHORTEST_SILENCE = 10.0
_LONGEST_SILENCE = 45.0
# A rank stalls after so much of the patience: stacks and a report take the rest.
_STALLED = 0.9
# A part whose length is not known yet may take so many times the patience: first steps compile.
_UNKNOWN = 10.0
# ... and one that is known so many times its longest.
_LONGER = 5.0
_KNOWN_AFTER = 3
# Where all ranks wait in collectives, the messages may be large and the links slow.
_ALL_WAIT = 5.0


@dataclass
class View:
    """What the hub knows of a rank.

    Attributes:
        rank: its number.
        host: that it runs on.
        pid: its process there.
        heard: when its guard last said something; the hub's clock, seconds.
        place: where it was then.
        since: when it came there.
        limit: seconds that it may be there, see ``Judge.limit``.
        state: of its process, the letter of ``ps``.
        left: it has said that it ends, and all is well.
        frames: of its main thread, for a person; filled by a look at a stalled run.
        waits: it stood in a collective then.
        looked: when that was.
    """

    rank: int
    host: str
    pid: int
    heard: float
    place: Place = field(default_factory=Place)
    since: float = 0.0
    limit: float = float("inf")
    state: str = "?"
    left: bool = False
    frames: Sequence[str] = ()
    waits: bool = False
    looked: float = -1.0

    def __str__(self) -> str:
        return f"rank {self.rank} on {self.host}"

    @property
    def is_stopped(self) -> bool:
        """A signal or a debugger holds its process."""
        return self.state in ("T", "t")


class Judge:
    """What is borne with.

    Args:
        patience: ``--watchdog-seconds``.

    Attributes:
        patience: as given.
        silence: seconds after which a rank that nothing is heard of counts as lost.
    """

    def __init__(self, patience: float) -> None:
        self.patience = patience
        self.silence = min(_LONGEST_SILENCE, max(_SHORTEST_SILENCE, _SILENT * patience))

    def limit(self, times: int, longest: float) -> float:
        """Seconds that a rank may be in a part without a mark.

        Args:
            times: that it was through with that part before.
            longest: of these, seconds.
        """
        longest_of_all = _UNKNOWN * self.patience
        if times < _KNOWN_AFTER:
            return longest_of_all
        return min(longest_of_all, max(_STALLED * self.patience, _LONGER * longest))

    def silent(self, views: Iterable[View], now: float) -> View | None:
        """The rank that nothing was heard of for longest, where that is too long."""
        found = min((v for v in views if not v.left), key=lambda v: v.heard, default=None)
        return found if found is not None and now - found.heard > self.silence else None

    def is_worth_a_look(self, views: Iterable[View], now: float) -> bool:
        """Whether some rank stalls, so that stacks are to be looked at."""
        alive = [view for view in views if not view.left]
        # A person or a scheduler holds the whole run.
        if all(view.is_stopped for view in alive):
            return False
        return any(now - view.since > view.limit for view in alive)

    def hanging(self, views: Iterable[View], now: float) -> list[View]:
        """The ranks that others wait for; empty where the run may still go on.

        Args:
            views: of all ranks, after a look.
            now: the hub's clock.
        """
        alive = [view for view in views if not view.left]
        stalled = [view for view in alive if now - view.since > view.limit]
        waiting = [view for view in alive if view.waits and not view.is_stopped]
        guilty = [view for view in stalled if not view.waits or view.is_stopped]
        if guilty and (waiting or len(alive) == len(guilty)):
            # Where none waits, each may compute: a hang only after the longest time.
            patience = 0.0 if waiting else _UNKNOWN * self.patience
            return [view for view in guilty if now - view.since > patience]
        everyone_waits = len(waiting) == len(alive)
        if everyone_waits and all(now - v.since > _ALL_WAIT * self.patience for v in alive):
            return _furthest_behind(alive)
        return []


def _furthest_behind(views: Sequence[View]) -> list[View]:
    def key(view: View) -> tuple[int, int]:
        return view.place.step, PARTS.index(view.place.part)

    last = min(map(key, views))
    return [view for view in views if key(view) == last]
