"""Where this rank is, for whoever watches over the run. A mark costs a microsecond or two."""

import time

from clipfast.watchman.record import Place, Record

_record: Record | None = None
_place = Place()
_since = 0.0


def mark(part: str, step: int | None = None) -> None:
    """Say that this rank goes on.

    Args:
        part: that it goes on with, one of ``clipfast.watchman.record.PARTS``; the same again in
            long loops.
        step: optimizer steps taken; None: as before.
    """
    global _place, _since
    if _record is None:
        return
    now = time.monotonic()
    _record.pass_through(_place.part, now - _since)
    _place = Place(_place.count + 1, _place.step if step is None else step, part)
    _since = now
    _record.write(_place)


def again() -> None:
    """Say that this rank goes on with the same part."""
    mark(_place.part)


def share(record: Record | None) -> None:
    """Where marks go from now on.

    Args:
        record: that a guard reads; None: nowhere.
    """
    global _record, _place, _since
    _record, _place, _since = record, Place(), time.monotonic()
