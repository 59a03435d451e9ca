"""Copies of shards on a local disk: equal bytes, a bound, no matter who is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from clipfast import storage
from clipfast.data.ahead import Ahead
from clipfast.storage import Cache, StoreOptions, storage_of
from clipfast.storage import cache as cache_module
from clipfast.storage.cache import Wanted
from tests.storage.conftest import address
from tests.storage.test_objects import assert_equal, take

pytestmark = pytest.mark.xdist_group("stores")

PATTERN = "/{00000..00002}.tar"


@pytest.fixture
def cache(tmp_path) -> Cache:
    return Cache(str(tmp_path), 10**9)


def paths(web) -> list[str]:
    return [f"{address(web)}/0000{number}.tar" for number in range(3)]


def fetch(cache: Cache, path: str) -> bool:
    stat = storage_of(path).stat(path)
    with storage_of(path).open(path, stat) as reader:
        return cache.fetch(path, stat, reader)


def copies(cache: Cache) -> list[Path]:
    return sorted(cache.folder.glob("objects/*.tar"))


def until(true, seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_training_with_a_cache_equals_training_from_files(any_web, folder, cache):
    local = take(str(folder) + PATTERN)
    storage.configure(StoreOptions(patience=20), cache)
    assert_equal(take(address(any_web) + PATTERN), local)
    until(lambda: not list(cache.folder.glob("pins/*")))
    for path in paths(any_web):
        assert fetch(cache, path)
    assert [copy.read_bytes() for copy in copies(cache)] == [
        (folder / f"0000{number}.tar").read_bytes()
        for number in sorted(range(3), key=lambda i: cache._copy(wanted(any_web, i)))
    ]
    any_web.met.clear()
    assert_equal(take(address(any_web) + PATTERN), local)
    # Three indexes, and nothing of a tar but 3 beginnings that the fingerprint looks at.
    with_copies = any_web.met["GET"]
    storage.configure(StoreOptions(patience=20))
    any_web.met.clear()
    assert_equal(take(address(any_web) + PATTERN), local)
    assert with_copies < any_web.met["GET"] - 3


def stat(web, number: int) -> storage.Stat:
    return storage_of(paths(web)[number]).stat(paths(web)[number])


def wanted(web, number: int) -> Wanted:
    return Wanted(paths(web)[number], stat(web, number))


def test_a_loader_fetches_the_shards_of_its_next_batches(web, cache):
    batches = iter([(number, np.array([number % 3])) for number in range(1000)])
    ahead = Ahead(cache, paths(web), batches, lambda: 0)
    until(lambda: len(copies(cache)) == 3 and len(list(cache.folder.glob("pins/*"))) == 1)
    ahead.close()
    assert not list(cache.folder.glob("pins/*"))


def test_a_loader_looks_no_further_than_all_shards_are_known(web, cache):
    position, looked = 0, 0

    def batches():
        nonlocal looked
        for number in range(100_000):
            looked = number + 1
            yield number, np.array([number // 10 % 3])

    ahead = Ahead(cache, paths(web), batches(), lambda: position)
    until(lambda: len(copies(cache)) == 3)
    time.sleep(0.5)
    assert looked <= 21
    # The first shard is over, and comes again in the next epoch.
    position = 10
    until(lambda: looked > 21)
    time.sleep(0.5)
    assert looked <= 31
    position = 95
    until(lambda: looked > 95 and len(ahead._placed) == 3)
    ahead.close()


def test_a_cache_holds_what_is_needed_next_and_never_more_than_it_may(web, folder, tmp_path):
    sizes = [stat(web, number).size for number in range(3)]
    cache = Cache(str(tmp_path), sizes[0] + sizes[1])
    position = 0
    order = [(0, [0, 1]), (1, [0, 1]), (2, [1, 2]), (3, [2]), (4, [2])]
    batches = iter([(number, np.array(shards)) for number, shards in order])
    ahead = Ahead(cache, paths(web), batches, lambda: position)
    until(lambda: len(copies(cache)) == 2)
    time.sleep(0.5)
    assert all(cache.has(wanted(web, number)) for number in range(2))
    # Whoever reads a shard that goes reads on.
    first = cache.find(*wanted(web, 0)[:2], [(0, sizes[0])])
    assert first is not None
    position = 3
    until(lambda: cache.has(wanted(web, 2)))
    assert not cache.has(wanted(web, 0))
    assert sum(copy.stat().st_size for copy in copies(cache)) <= cache.capacity
    assert first.read([(0, sizes[0])]) == [(folder / "00000.tar").read_bytes()]
    ahead.close()


def test_a_shard_larger_than_the_cache_is_read_from_its_store(web, folder, tmp_path):
    local = take(str(folder) + PATTERN)
    cache = Cache(str(tmp_path), 1000)
    storage.configure(StoreOptions(patience=20), cache)
    assert_equal(take(address(web) + PATTERN), local)
    assert not fetch(cache, paths(web)[0])
    assert not copies(cache)


def test_one_process_fetches_a_shard_and_the_others_go_on(web, cache):
    lock = cache.folder / "locks" / cache._copy(wanted(web, 0)).stem
    with cache_module._locked(lock, wait=False) as mine:
        assert mine
        assert not fetch(cache, paths(web)[0])
    assert fetch(cache, paths(web)[0])


KILLED = """
import sys
from clipfast.storage import Cache, storage_of, cache
cache._PART = 1000
path = sys.argv[2]
store = storage_of(path)
print("go", flush=True)
Cache(sys.argv[1], 10**9).fetch(path, store.stat(path), store.open(path))
"""


def test_what_a_killed_process_was_fetching_is_removed_and_fetched_again(web, folder, tmp_path):
    path = paths(web)[0]
    cache = Cache(str(tmp_path), 10**9)
    web.latency = 0.3
    child = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(tmp_path), path], stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "go\n"
    until(lambda: list(cache.folder.glob("objects/.*.tmp")), 60)
    time.sleep(0.5)
    child.send_signal(signal.SIGKILL)
    child.wait()
    child.stdout.close()
    web.latency = 0.0
    assert list(cache.folder.glob("objects/.*.tmp"))
    assert not copies(cache)
    assert fetch(cache, path)
    assert [copy.read_bytes() for copy in copies(cache)] == [(folder / "00000.tar").read_bytes()]
    assert not list(cache.folder.glob("objects/.*.tmp"))


def test_pins_of_a_dead_process_hold_nothing(web, tmp_path):
    sizes = [stat(web, number).size for number in range(3)]
    cache = Cache(str(tmp_path), max(sizes))
    assert fetch(cache, paths(web)[0])
    cache.pin("here", [wanted(web, 0)])
    assert not fetch(cache, paths(web)[1])
    (pin,) = cache.folder.glob("pins/*")
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    pin.rename(pin.with_name(pin.name.replace(str(os.getpid()), str(dead.pid), 1)))
    assert fetch(cache, paths(web)[1])
    assert not cache.has(wanted(web, 0))


def test_a_copy_that_was_cut_is_not_read(web, folder, cache):
    path = paths(web)[0]
    assert fetch(cache, path)
    storage.configure(StoreOptions(patience=20), cache)
    data = (folder / "00000.tar").read_bytes()
    with storage_of(path).open(path) as reader:
        assert reader.read_at(0, 5000) == data[:5000]
        (copy,) = copies(cache)
        os.truncate(copy, 1000)
        web.met.clear()
        assert reader.read_many([(0, 5000), (9000, 50)]) == [data[:5000], data[9000:9050]]
        assert web.met["GET"] == 1


def test_another_version_of_a_shard_has_another_copy(cache):
    one, other = (Wanted("s3://b/0.tar", storage.Stat(5, etag, 1)) for etag in ('"a"', '"b"'))
    assert cache._copy(one) != cache._copy(other)
    # A store that copies an object to another disk changes its time, not its ETag.
    later = one._replace(stat=storage.Stat(5, one.stat.etag, 2))
    assert cache._copy(one) == cache._copy(later)
