"""Many ranges in few calls: equal bytes, whatever fails, and never those of another version."""

from __future__ import annotations

import threading

import pytest

from clipfast.storage import Stat
from clipfast.storage.failures import ChangedError, PassingError
from clipfast.storage.together import AT_A_TIME, Together

DATA = bytes(range(256)) * 40
OLD = Stat(len(DATA), '"old"')
RANGES = [(7 * i * i, 3 + i % 5) for i in range(2 * AT_A_TIME + 3)]


class Store:
    """An object; `fails` says which calls fail and how, `changes` before which it is another."""

    def __init__(self, fails=None, changes: int | None = None) -> None:
        self.fails, self.changes = fails or {}, changes
        self.calls, self.single, self.looks = 0, 0, 0
        self.lock = threading.Lock()

    def bytes(self, start: int, stop: int) -> bytes:
        data = DATA[start:stop]
        changed = self.changes is not None and self.calls > self.changes
        return bytes(255 - byte for byte in data) if changed else data

    def fetch_unchecked(self, path, ranges):
        with self.lock:
            self.calls += 1
            number = self.calls
            found = [self.bytes(at, at + size) for at, size in ranges]
        kind = self.fails.get(number)
        if kind == "short":
            return [data[:-1] for data in found]
        if kind:
            raise kind
        return found

    def is_still(self, path, stat):
        self.looks += 1
        return self.changes is None and stat == OLD

    def fetch(self, path, start, stop, stat):
        with self.lock:
            self.single += 1
        if self.changes is not None:
            raise ChangedError("its ETag was")
        return self.bytes(start, stop)


@pytest.mark.parametrize("count", [1, 3, AT_A_TIME, AT_A_TIME + 1, len(RANGES)])
@pytest.mark.parametrize("in_flight", [1, 64])
def test_ranges_in_few_calls_are_those_of_the_object(count, in_flight):
    store = Store()
    found = Together(store, "s3://b/0.tar", OLD, RANGES[:count], in_flight).wait()
    assert found == [DATA[at : at + size] for at, size in RANGES[:count]]
    assert (store.calls, store.single, store.looks) == (-(-count // AT_A_TIME), 0, 1)


@pytest.mark.parametrize("kind", ["short", PassingError("503"), FileNotFoundError("gone")])
def test_a_call_that_fails_is_made_range_by_range(kind):
    store = Store({2: kind})
    found = Together(store, "s3://b/0.tar", OLD, RANGES, 1).wait()
    assert found == [DATA[at : at + size] for at, size in RANGES]
    assert store.single == AT_A_TIME


@pytest.mark.parametrize("changes", [0, 1, 2, 3])
def test_an_object_that_changes_between_calls_gives_no_byte(changes):
    with pytest.raises(ChangedError, match="its ETag was"):
        Together(Store(changes=changes), "s3://b/0.tar", OLD, RANGES, 1).wait()
