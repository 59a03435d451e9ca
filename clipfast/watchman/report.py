"""A hang in words: who hangs, since when, where every rank stands."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby

from clipfast.watchman.judge import View

_STATES = {
    "R": "running",
    "S": "sleeping",
    "D": "waiting for a disk or a device",
    "T": "stopped by a signal",
    "t": "held by a debugger",
    "Z": "dead",
}
# Numbers of ranks in a line.
_SHOWN = 16


def headline(hanging: Sequence[View], views: Sequence[View], now: float) -> str:
    """The one line that names who hangs."""
    seconds = min(now - view.since for view in hanging)
    who = " and ".join(map(str, hanging[:4])) + (" and others" if len(hanging) > 4 else "")
    verb = "hangs" if len(hanging) == 1 else "hang"
    others = len([view for view in views if not view.left]) - len(hanging)
    place = hanging[0].place
    if all(view.waits and not view.is_stopped for view in hanging):
        return (
            f"all ranks wait in collectives for {seconds:.0f} s, {who} furthest behind: after step "
            f"{place.step}, in {place.part}. A link may be cut, or ranks call other collectives"
        )
    if not others:
        return f"{who} {verb}: no rank has gone on for {seconds:.0f} s"
    waiting = "rank waits" if others == 1 else "ranks wait"
    return (
        f"{who} {verb} after step {place.step}, in {place.part}, for {seconds:.0f} s, and "
        f"{others} {waiting} for it"
    )


def hang_report(
    hanging: Sequence[View], views: Iterable[View], now: float, logs: str
) -> Iterator[str]:
    """Lines of the report.

    Args:
        hanging: of ``Judge.hanging``.
        views: of all ranks, after a look.
        now: the hub's clock.
        logs: where the stacks of all threads are.

    Yields:
        Those who hang first; ranks that stand at one place share their lines.
    """
    names = {view.rank for view in hanging}
    rest = sorted((v for v in views if v.rank not in names), key=lambda v: v.rank)
    yield f"HANG: {headline(hanging, [*hanging, *rest], now)}"
    for _, group in groupby(sorted(hanging, key=_place), key=_place):
        yield from _lines(list(group), now)
    for _, group in groupby(sorted(rest, key=_place), key=_place):
        yield from _lines(list(group), now)
    yield f"Stacks of all threads of all ranks: {logs}"


def _place(view: View) -> tuple[int, str, str, bool, Sequence[str]]:
    return view.place.step, view.place.part, view.state, view.waits, tuple(view.frames)


def _lines(views: Sequence[View], now: float) -> Iterator[str]:
    first = views[0]
    who = f"{first}, process {first.pid}"
    if len(views) > 1:
        numbers = ", ".join(str(view.rank) for view in views[:_SHOWN])
        who = f"{len(views)} ranks, {numbers}{' ...' if len(views) > _SHOWN else ''}"
    state = "waits in a collective" if first.waits else _STATES.get(first.state, first.state)
    if first.is_stopped:
        state = _STATES[first.state]
    since = min(now - view.since for view in views)
    yield f"  {who}: after step {first.place.step}, {first.place.part}, for {since:.0f} s, {state}"
    if first.left:
        yield "      has ended"
    elif not first.frames:
        yield "      no stack: a process that is stopped, or that waits for a disk, writes none"
    yield from (f"      {frame}" for frame in first.frames)
