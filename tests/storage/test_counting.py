"""What a logging row says of reading: it is what a server was asked for."""

from __future__ import annotations

import time

import pytest

from clipfast import storage
from clipfast.engine.config import DataConfig
from clipfast.engine.observing.reading import Reading, with_hit_rate
from clipfast.storage import Cache, StoreOptions, counting, storage_of
from tests.storage.conftest import address
from tests.storage.test_objects import take

pytestmark = pytest.mark.xdist_group("stores")


def test_requests_bytes_and_retries_are_those_of_the_server(s3):
    s3.spoil(["503", "reset", "cut"])
    before = counting.counts()
    take("s3://shards/set/{00000..00002}.tar")
    found = counting.counts() - before
    assert found.requests == sum(s3.met.values())
    assert found.retries == 3
    # What the loader reads of the tars, their indexes and 3 beginnings.
    assert found.bytes > 20_000
    assert found.asked == found.found == found.copied == 0
    assert found.seconds > 0


def test_reads_at_one_time_wait_once(web):
    web.latency = 0.2
    path = address(web) + "/00002.tar"
    with storage_of(path).open(path) as reader:
        before, began = counting.counts(), time.monotonic()
        started = [reader.start_many([(at, 5)]) for at in range(0, 8000, 1000)]
        assert [len(wait()[0]) for wait in started] == [5] * 8
        waited, passed = counting.counts() - before, time.monotonic() - began
    assert waited.bytes == 40
    assert 0.2 <= waited.seconds <= passed


def test_a_row_says_what_came_from_copies(web, tmp_path):
    cache = Cache(str(tmp_path), 10**9)
    storage.configure(StoreOptions(patience=20), cache)
    path = address(web) + "/00000.tar"
    store = storage_of(path)
    row = Reading(DataConfig(train=(path,), cache=str(tmp_path)))
    with store.open(path) as reader:
        reader.read_many([(0, 1000)])
        sums, largest = row.take(2)
        assert sums["cache/asked"] == sums["store/bytes"] == 1000
        assert sums["cache/found"] == sums["cache/fetched"] == largest["cache/bytes"] == 0
        assert cache.fetch(path, store.stat(path), reader)
        sums, largest = row.take(2)
        assert sums["cache/fetched"] == sums["store/bytes"] == largest["cache/bytes"]
        assert largest["cache/bytes"] == cache.held() == reader.size()
        # Nobody waited for the copy: two looks at the object alone.
        assert sums["cache/asked"] == 0
        assert "cache/hit_rate" not in with_hit_rate(sums)
        reader.read_many([(0, 1000), (2000, 500)])
        sums, _ = row.take(1)
        assert with_hit_rate(sums) == {
            **{"store/bytes": 0, "store/requests": 0, "store/retries": 0},
            **{"cache/fetched": 0, "cache/hit_rate": 1},
        }


def test_a_run_on_local_files_says_nothing_of_stores():
    assert Reading(DataConfig(train=("/data/{0..3}.tar", "sample"))).take(1) == ({}, {})
