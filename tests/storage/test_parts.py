"""Where a selection keeps little of a shard, a cache holds that little: equal bytes, no others."""

from __future__ import annotations

import itertools
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from clipfast import storage
from clipfast.data import TrainLoader, index
from clipfast.data.reader import ShardReader
from clipfast.data.selection import Selection, choose
from clipfast.data.table import identify, read_table
from clipfast.storage import Cache, StoreOptions, storage_of
from clipfast.storage.cache import Wanted
from clipfast.storage.copies import GAP, Ranges
from clipfast.storage.failures import ChangedError
from tests.storage.conftest import address, write_shard
from tests.storage.proxy import Proxy
from tests.storage.test_cache import until
from tests.storage.test_objects import assert_equal, take

pytestmark = pytest.mark.xdist_group("stores")

PATTERN = "/wide/{0..2}.tar"
STORE = "s3://shards"
# A look at an index, and the beginnings of shards that the fingerprint reads.
LOOKED_AT = 3 * (64 << 10) + 10_000
# Pictures of 30 kB: between two that are kept more than a gap is left out.
ROWS, SIDE = 31, (103, 97)


@pytest.fixture(scope="module", autouse=True)
def wide(folder: Path) -> Path:
    """Three shards with their indexes, in a folder of the web server."""
    where = folder / "wide"
    where.mkdir()
    for number in range(3):
        write_shard(where / f"{number}.tar", number, ROWS, SIDE)
    shards = [str(path) for path in sorted(where.glob("*.tar"))]
    assert index.index_shards(shards, workers=1, dali=False, progress=False).good == 3 * ROWS
    return where


@pytest.fixture
def store(s3: Proxy, wide: Path) -> Proxy:
    """The store, with the shards, and indexes that were made there."""
    place = storage_of(STORE)
    shards = [f"{STORE}/wide/{number}.tar" for number in range(3)]
    if not place.is_file(f"{STORE}/wide/2.idx"):
        for number, shard in enumerate(shards):
            place.write_atomic(shard, (wide / f"{number}.tar").read_bytes())
        assert index.index_shards(shards, workers=1, dali=False, progress=False).good == 3 * ROWS
    return s3


@pytest.fixture
def cache(tmp_path) -> Cache:
    return Cache(str(tmp_path), 10**9)


def selection(wide: Path, *rows: list[int]) -> Selection:
    """Rows of each shard."""
    choices = []
    for number, kept in enumerate(rows):
        path = str(wide / f"{number}.tar")
        known = identify(path)
        choices.append(choose(path, known.samples, known.mark, kept))
    return Selection(choices)


def with_cache(cache: Cache | None, proxy: Proxy) -> None:
    """Of a web server the endpoint says nothing."""
    storage.configure(StoreOptions(f"http://127.0.0.1:{proxy.port}", patience=20), cache)


def copies(cache: Cache, kind: str) -> list[Path]:
    return sorted(cache.folder.glob(f"objects/*.{kind}"))


def ranges_of(wide: Path, number: int, rows: list[int]) -> Ranges:
    table = read_table(str(wide / f"{number}.tar"))
    columns = (table.image_offset, table.image_size), (table.caption_offset, table.caption_size)
    return Ranges(np.concatenate([np.stack(each, 1)[rows] for each in columns]))


def fetch(cache: Cache, path: str, ranges: Ranges | None) -> bool:
    stat = storage_of(path).stat(path)
    with storage_of(path).open(path, stat) as reader:
        return cache.fetch(path, stat, reader, ranges)


def filled(cache: Cache, pattern: str, kind: str, count: int, **options) -> list:
    """What is trained on until all copies are there."""
    loader = TrainLoader(pattern, 16, 2, seed=3, window=8, **options)
    batches = iter(loader)
    next(batches)
    until(lambda: len(copies(cache, kind)) == count)
    batches.close()
    return copies(cache, kind)


KEPT = ([3, 11, 30], [0, 15], [7])


def test_of_a_selection_only_what_it_keeps_is_fetched(store, folder, wide, cache):
    chosen = selection(wide, *KEPT)
    local = take(str(folder) + PATTERN, 2, select=chosen)
    with_cache(cache, store)
    before = storage.counting.counts()
    made = filled(cache, STORE + PATTERN, "part", 3, select=chosen)
    copied = (storage.counting.counts() - before).copied
    pictures = sum(
        int((table.image_size[rows] + table.caption_size[rows]).sum())
        for number, rows in enumerate(KEPT)
        for table in [read_table(str(wide / f"{number}.tar"))]
    )
    # With each sample the header and the padding between its files.
    assert pictures <= copied <= pictures + 6 * 1024
    assert sum(path.stat().st_size for path in made) == cache.held() <= copied + 3 * 16 + 6 * 16
    assert not copies(cache, "tar")
    # Those files serve all of a run: indexes and 3 beginnings are read from the server.
    store.sent = 0
    assert_equal(take(STORE + PATTERN, 2, select=chosen), local)
    assert store.sent < LOOKED_AT
    with_cache(None, store)
    assert_equal(take(STORE + PATTERN, 2, select=chosen), local)
    assert store.sent > pictures + 3 * (64 << 10)


def test_another_selection_is_another_file_and_a_whole_copy_serves_both(store, folder, wide, cache):
    one, other = selection(wide, *KEPT), selection(wide, [3], [16], [7, 8])
    with_cache(cache, store)
    filled(cache, STORE + PATTERN, "part", 3, select=one)
    # Of the last shard a neighbour more, so all three differ.
    filled(cache, STORE + PATTERN, "part", 6, select=other)
    for chosen in (one, other):
        store.sent = 0
        local = take(str(folder) + PATTERN, 1, select=chosen)
        assert_equal(take(STORE + PATTERN, 1, select=chosen), local)
        assert store.sent < LOOKED_AT
    for path in copies(cache, "part"):
        path.unlink()
    for number in range(3):
        assert fetch(cache, f"{STORE}/wide/{number}.tar", None)
    store.sent = 0
    assert_equal(take(STORE + PATTERN, 1, select=other), local)
    assert store.sent < LOOKED_AT
    assert not copies(cache, "part")


def test_most_of_a_shard_is_fetched_whole(web, wide, cache):
    with_cache(cache, web)
    most = [row for row in range(ROWS) if row % 7]
    filled(cache, address(web) + PATTERN, "tar", 3, select=selection(wide, most, most, most))
    assert not copies(cache, "part")


def test_a_read_outside_of_the_ranges_asks_the_store(web, wide, cache):
    with_cache(cache, web)
    path = f"{address(web)}/wide/1.tar"
    ranges, data = ranges_of(wide, 1, [4, 20]), (wide / "1.tar").read_bytes()
    assert fetch(cache, path, ranges)
    cache.expect(Wanted(path, storage_of(path).stat(path), ranges.part))
    table = read_table(str(wide / "1.tar"))
    inside = [(int(table.image_offset[row]), int(table.image_size[row])) for row in (20, 4)]
    before = (inside[1][0] - 5000, 5000 + inside[1][1])
    with storage_of(path).open(path) as reader:
        web.sent = 0
        assert reader.read_many(inside) == [data[at : at + size] for at, size in inside]
        assert reader.read_many([(inside[0][0] + 7, 100), (9, 0)]) == [
            data[inside[0][0] + 7 :][:100],
            b"",
        ]
        assert web.sent == 0
        for outside in (before, (0, 512), (len(data) - 100, 100), (inside[0][0], 10**6)):
            found = reader.read_many([inside[0], outside])
            assert found == [data[slice(at, at + size)] for at, size in (inside[0], outside)]
        assert web.sent > 0
        # And the copy is still used.
        web.sent = 0
        assert reader.read_at(*inside[1]) == data[slice(inside[1][0], sum(inside[1]))]
        assert web.sent == 0


@pytest.mark.parametrize("damage", ["cut", "table", "word", "empty"])
def test_a_damaged_copy_of_ranges_is_not_read(web, wide, cache, damage):
    with_cache(cache, web)
    path = f"{address(web)}/wide/0.tar"
    ranges, data = ranges_of(wide, 0, [2, 25]), (wide / "0.tar").read_bytes()
    assert fetch(cache, path, ranges)
    cache.expect(Wanted(path, storage_of(path).stat(path), ranges.part))
    (copy,) = copies(cache, "part")
    content = bytearray(copy.read_bytes())
    at, size = int.from_bytes(content[16:24], "little"), int.from_bytes(content[24:32], "little")
    if damage == "cut":
        del content[-1:]
    elif damage == "table":
        content[16] ^= 1
    elif damage == "word":
        content[0] ^= 1
    else:
        content.clear()
    copy.write_bytes(content)
    with storage_of(path).open(path) as reader:
        web.sent = 0
        assert reader.read_many([(at, size)]) == [data[at : at + size]]
        assert web.sent == size


def test_ranges_count_by_their_size_and_make_room_as_shards_do(web, wide, tmp_path):
    paths = [f"{address(web)}/wide/{number}.tar" for number in range(3)]
    few, more = ranges_of(wide, 1, [4]), ranges_of(wide, 2, [1, 5, 20])
    whole = storage_of(paths[0]).stat(paths[0]).size
    cache = Cache(str(tmp_path), whole + few.part.size)
    assert fetch(cache, paths[0], None)
    assert fetch(cache, paths[1], few)
    assert cache.held() == cache.capacity
    cache.pin("here", [Wanted(paths[1], storage_of(paths[1]).stat(paths[1]), few.part)])
    # The whole one goes, which nobody needs.
    assert fetch(cache, paths[2], more)
    assert not copies(cache, "tar")
    assert cache.held() == few.part.size + more.part.size
    # Ranges that nobody needs go, too; those that are needed stay.
    assert fetch(cache, paths[0], None)
    assert len(copies(cache, "part")) == 1
    assert not fetch(cache, paths[2], more) or cache.held() <= cache.capacity
    cache.unpin("here")


def test_a_shard_that_changed_leaves_no_copy_of_ranges(s3, wide, cache):
    path = "s3://shards/parts/0.tar"
    store, data = storage_of(path), (wide / "0.tar").read_bytes()
    store.write_atomic(path, data)
    old = store.stat(path)
    store.write_atomic(path, data[:-1] + b"x")
    with store.open(path, old) as reader, pytest.raises(ChangedError, match="its ETag was"):
        cache.fetch(path, old, reader, ranges_of(wide, 0, [3, 30]))
    assert not list(cache.folder.glob("objects/*"))
    # Each version has a copy of its own.
    ranges = ranges_of(wide, 0, [3, 30])
    assert fetch(cache, path, ranges)
    store.write_atomic(path, data)
    assert not cache.has(Wanted(path, store.stat(path), ranges.part))


CHILD = """
import sys
import numpy
from clipfast.storage import Cache, StoreOptions, configure, storage_of
from clipfast.storage.copies import Ranges
folder, path, rows = sys.argv[1:]
rows = [int(each) for each in rows.split(",")]
configure(StoreOptions(patience=20))
stat = storage_of(path).stat(path)
cache, ranges = Cache(folder, 10**9), Ranges(numpy.array(rows).reshape(-1, 2))
print("go", flush=True)
sys.stdin.readline()
with storage_of(path).open(path, stat) as reader:
    print(cache.fetch(path, stat, reader, ranges), flush=True)
"""


def test_processes_share_copies_of_ranges_and_one_that_is_killed_leaves_none(web, wide, tmp_path):
    path, ranges = f"{address(web)}/wide/2.tar", ranges_of(wide, 2, [2, 9, 28])
    cache = Cache(str(tmp_path), 10**9)
    flat = ",".join(str(each) for request in ranges.requests() for one in request for each in one)
    command = [sys.executable, "-c", CHILD, str(tmp_path), path, flat]
    pipe = subprocess.PIPE
    children = [subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) for _ in range(3)]
    for child in children:
        assert child.stdout is not None
        assert child.stdout.readline() == "go\n"
    killed, *others = children
    web.latency = 1.0
    killed.stdin.write("\n")
    killed.stdin.flush()
    until(lambda: list(cache.folder.glob("objects/.*.tmp")))
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert list(cache.folder.glob("objects/.*.tmp"))
    time.sleep(1.5)
    web.latency, web.sent = 0.3, 0
    for child in others:
        child.stdin.write("\n")
        child.stdin.flush()
    said = [child.communicate(timeout=60)[0] for child in others]
    assert "True\n" in said
    assert not list(cache.folder.glob("objects/.*.tmp"))
    assert len(copies(cache, "part")) == 1
    # One of them fetched it.
    assert web.sent == sum(size for request in ranges.requests() for _, size in request) + sum(
        later[0] - sum(one)
        for request in ranges.requests()
        for one, later in itertools.pairwise(request)
    )
    assert cache.held() == ranges.part.size
    assert fetch(cache, path, ranges)


def test_ranges_are_joined_as_one_by_one_would(folder):
    draw = np.random.default_rng(7)
    for count in (0, 1, 7, 123, 507):
        some = np.stack([draw.integers(0, 10**6, count), draw.integers(0, 3000, count)], 1)
        ranges = Ranges(some)
        requests = ranges.requests()
        joined = [each for request in requests for each in request]
        expected: list[list[int]] = []
        for offset, size in sorted((at, size) for at, size in some.tolist() if size):
            if expected and offset <= expected[-1][1] + 1024:
                expected[-1][1] = max(expected[-1][1], offset + size)
            else:
                expected.append([offset, offset + size])
        assert [[at, at + size] for at, size in joined] == expected
        assert ranges.part == Ranges(draw.permutation(some)).part
        for request in requests:
            assert sum(request[-1]) - request[0][0] <= 1 << 20 or len(request) == 1


def test_ranges_are_worth_it_where_bytes_and_requests_are_clearly_fewer():
    image, every = 50_000, np.arange(0, 10**8, 51_024)

    def share(step: int) -> bool:
        some = every[::step]
        return Ranges(np.stack([some, np.full(len(some), image)], 1)).are_worth_it(10**8)

    assert share(20)
    assert share(4)
    assert not share(2)
    assert not share(1)
    # Small pictures: requests are what costs.
    tiny = np.arange(0, 10**8, 2 * GAP)
    assert not Ranges(np.stack([tiny, np.full(len(tiny), GAP - 10)], 1)).are_worth_it(10**8)


def test_threads_that_need_a_table_together_read_it_once(web, wide):
    reader = ShardReader([f"{address(web)}/wide/{number}.tar" for number in range(3)])
    reader.table(0)
    web.met.clear()
    web.latency = 0.2
    threads = [threading.Thread(target=reader.table, args=(1,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    several = dict(web.met)
    web.met.clear()
    reader.table(2)
    assert several == dict(web.met)


def test_as_many_tables_are_kept_as_have_so_many_samples(wide, monkeypatch):
    monkeypatch.setattr("clipfast.data.reader._KEPT_SAMPLES", 2 * ROWS)
    reader = ShardReader([str(wide / f"{number}.tar") for number in range(3)])
    tables = [reader.table(number) for number in range(3)]
    assert reader.table(1) is tables[1]
    assert reader.table(2) is tables[2]
    assert reader.table(0) is not tables[0]
    monkeypatch.setattr("clipfast.data.reader._KEPT_SAMPLES", 1)
    last = reader.table(1)
    assert reader.table(1) is last
