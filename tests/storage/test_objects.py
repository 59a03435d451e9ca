"""Training from a store equals training from files, whatever the store does meanwhile."""

from __future__ import annotations

import itertools
import logging
import os
import shutil
import time

import pytest
import torch

from clipfast import storage
from clipfast.data import TrainLoader, index, shards
from clipfast.data.indexfile import check_index
from clipfast.data.pack import main as pack
from clipfast.data.table import read_table
from clipfast.storage import ObjectStorage, StoreOptions, storage_of
from clipfast.storage.failures import ChangedError, RefusedError, UnreachableError
from clipfast.storage.patience import Patience, under_way
from tests.storage.conftest import SIZES, address
from tests.storage.httpfolder import serve
from tests.storage.proxy import FAULTS

pytestmark = pytest.mark.xdist_group("stores")

# Those that end an attempt at once; a stall takes the timeout of a read.
QUICK = [fault for fault in FAULTS if fault not in ("stall", "half")]


def take(patterns, batch: int = 6, steps: int = 6, **options) -> list:
    loader = TrainLoader(patterns, 16, batch, seed=3, window=8, **options)
    return [*itertools.islice(loader, steps), loader.state_dict()]


def assert_equal(found: list, expected: list) -> None:
    assert found[-1] == expected[-1]
    for one, other in zip(found[:-1], expected[:-1], strict=True):
        assert (one.epoch, one.index) == (other.epoch, other.index)
        for name in ("images", "tokens", "lengths"):
            assert torch.equal(
                torch.as_tensor(getattr(one, name)), torch.as_tensor(getattr(other, name))
            )
        assert one.shard.tolist() == other.shard.tolist()
        assert one.row.tolist() == other.row.tolist()


@pytest.fixture
def local(folder):
    return take(str(folder / "{00000..00002}.tar"))


@pytest.mark.parametrize("pattern", ["{00000..00002}.tar", "0*.tar", "0000[0-2].tar"])
def test_training_from_s3_equals_training_from_files(s3, local, pattern):
    assert_equal(take(f"s3://shards/set/{pattern}"), local)


def test_training_from_a_web_server_equals_training_from_files(any_web, local):
    assert_equal(take(address(any_web) + "/{00000..00002}.tar"), local)


@pytest.mark.parametrize(("prefetch", "micro_batch"), [(1, None), (9, None), (2, 2), (3, 3)])
def test_what_is_read_ahead_changes_no_batch(web, local, prefetch, micro_batch):
    where = address(web) + "/{00000..00002}.tar"
    options = {"prefetch": prefetch}
    if micro_batch is None:
        return assert_equal(take(where, **options), local)
    loader = TrainLoader(where, 16, 6, seed=3, window=8, micro_batch=micro_batch, **options)
    for other, one in zip(local[:-1], loader, strict=False):
        parts = [part.images for part in one.parts(6 // micro_batch)]
        assert torch.equal(torch.cat(parts), other.images)
    assert loader.state_dict() == local[-1]


@pytest.mark.parametrize("prefetch", [1, 5])
def test_so_many_batches_are_read_ahead(folder, prefetch, monkeypatch):
    loader = TrainLoader(str(folder / "{00000..00002}.tar"), 16, 3, prefetch=prefetch)
    read = []
    whole = loader.reader.read

    def noted(request, **options):
        read.append(request.index)
        return whole(request, **options)

    monkeypatch.setattr(loader.reader, "read", noted)
    batches = iter(loader)
    next(batches)
    time.sleep(1.0)
    # The decoder holds some more.
    held = len(read) - prefetch
    batches.close()
    assert 1 <= held <= 5


def test_a_state_of_local_files_goes_on_from_s3_on_another_number_of_ranks(s3, folder):
    pattern = "{00000..00002}.tar"
    loader = TrainLoader(str(folder / pattern), 16, 6, seed=3, window=8)
    whole = list(itertools.islice(loader, 2))
    state, rest = loader.state_dict(), list(itertools.islice(loader, 3))
    assert len(whole) == 2
    parts = []
    for rank in range(3):
        there = TrainLoader(
            f"s3://shards/set/{pattern}", 16, 6, seed=3, window=8, rank=rank, world_size=3
        )
        there.load_state_dict(state)
        parts.append(list(itertools.islice(there, 3)))
    for batch, shares in zip(rest, zip(*parts, strict=True), strict=True):
        assert torch.equal(batch.images, torch.cat([share.images for share in shares]))
        assert torch.equal(batch.tokens, torch.cat([share.tokens for share in shares]))


def test_a_shard_without_index_is_scanned_in_a_store(s3, folder):
    here, there = read_table(str(folder / "bare.tar")), read_table("s3://shards/set/bare.tar")
    assert len(there) == 3
    assert here.image_offset.tolist() == there.image_offset.tolist()
    assert here.keys() == there.keys()


@pytest.mark.parametrize("place", ["s3", "web", "nginx"])
def test_40_faults_in_turn_lose_nothing_and_change_nothing(place, request, local):
    proxy = request.getfixturevalue(place)
    faults = [each for fault in QUICK for each in (fault, fault, None)] * 3
    proxy.spoil(faults[:60])
    where = "s3://shards/set" if place == "s3" else address(proxy)
    assert_equal(take(where + "/{00000..00002}.tar"), local)
    assert sum(proxy.met[fault] for fault in QUICK) >= 40
    assert min(proxy.met[fault] for fault in QUICK) >= 4


@pytest.mark.parametrize("fault", ["stall", "half"])
def test_a_store_that_stalls_is_asked_again(web, folder, monkeypatch, fault):
    monkeypatch.setattr(storage.clients, "_READ", "300ms")
    monkeypatch.setattr(storage.clients, "_clients", {})
    path = address(web) + "/00002.tar"
    with storage_of(path).open(path) as reader:
        web.spoil([fault])
        assert reader.read_at(0, 20_000) == (folder / "00002.tar").read_bytes()[:20_000]
    assert web.met[fault] == 1


def test_requests_of_a_batch_are_under_way_together(s3):
    take("s3://shards/set/0*.tar", steps=1)
    s3.met.clear()
    s3.latency, s3.most_at_once = 0.05, 0
    path = "s3://shards/set/00002.tar"
    with storage_of(path).open(path) as reader:
        reader.read_many([(at, 5) for at in range(0, reader.size(), 1000)])
        assert s3.met["GET"] == 1
        # Gaps too long to be read over.
        s3.met.clear()
        started = [reader.start_many([(at, 5)]) for at in range(0, 8000, 1000)]
        assert [len(wait()[0]) for wait in started] == [5] * 8
    assert s3.most_at_once > 3


def test_a_shard_that_changes_while_it_is_read_ends_the_run(s3, folder):
    path = "s3://shards/changes/0.tar"
    store = storage_of(path)
    for kind in ("tar", "idx"):
        store.write_atomic(f"s3://shards/changes/0.{kind}", (folder / f"00000.{kind}").read_bytes())
    loader = TrainLoader(path, 16, 2, seed=1)
    batches = iter(loader)
    next(batches)
    data = bytearray((folder / "00000.tar").read_bytes())
    data[-1] ^= 1
    store.write_atomic(path, bytes(data))
    with pytest.raises(ChangedError, match=r"0\.tar has changed while it is read: its ETag was"):
        list(itertools.islice(batches, 20))


def test_a_shard_that_nginx_hands_out_and_that_is_replaced_ends_the_read(nginx, folder):
    (folder / "replaced").mkdir()
    there = folder / "replaced" / "0.tar"
    shutil.copy(folder / "00000.tar", there)
    path, data = address(nginx) + "/replaced/0.tar", there.read_bytes()
    with storage_of(path).open(path) as reader:
        assert reader.size() == len(data)
        assert reader.read_many([(512, 700), (len(data) - 9, 100)]) == [data[512:1212], data[-9:]]
        # Of the same size; nginx tells versions by time and size.
        os.utime(there, (0, time.time() - 5000))
        with pytest.raises(ChangedError, match="its ETag was"):
            reader.read_at(0, 100)


def test_a_changed_shard_is_seen_by_its_time_where_a_server_gives_no_etag(tmp_path, folder):
    shutil.copy(folder / "00000.tar", tmp_path / "0.tar")
    server = serve(tmp_path, etag=False)
    storage.configure(StoreOptions(patience=1))
    path = f"http://127.0.0.1:{server.server_address[1]}/0.tar"
    with storage_of(path).open(path) as reader:
        assert len(reader.read_at(0, 100)) == 100
        os.utime(tmp_path / "0.tar", (0, time.time() - 5000))
        with pytest.raises(ChangedError, match="its time was"):
            reader.read_at(0, 100)
    server.shutdown()
    server.server_close()


class Clock:
    """Time that passes only while somebody sleeps."""

    def __init__(self) -> None:
        self.now = 0.0

    def sleep(self, seconds: float) -> bool:
        self.now += seconds
        return False


def test_a_store_that_is_away_for_two_minutes_is_waited_for(s3, caplog):
    path = "s3://shards/set/00000.tar"
    store, clock = storage_of(path), Clock()
    assert isinstance(store, ObjectStorage)
    reader = store.open(path)

    def sleep(seconds: float) -> bool:
        s3.away = clock.now < 120
        assert under_way()
        return clock.sleep(seconds)

    store._patience = Patience(600, clock=lambda: clock.now, sleep=sleep, draw=lambda: 1.0)
    s3.away = True
    with caplog.at_level(logging.WARNING):
        assert len(reader.read_at(0, 1000)) == 1000
    assert 120 <= clock.now < 150
    told = [record.getMessage() for record in caplog.records]
    assert 4 <= len(told) <= 5
    assert told[0].startswith("waiting for shard s3://shards/set/00000.tar, bytes 0 to 1,000: ")
    assert not under_way()


def test_a_store_that_stays_away_is_an_error_with_shard_range_attempts_and_remedy(s3):
    path = "s3://shards/set/00000.tar"
    store, clock = storage_of(path), Clock()
    assert isinstance(store, ObjectStorage)
    reader = store.open(path)
    store._patience = Patience(60, clock=lambda: clock.now, sleep=clock.sleep, draw=lambda: 1.0)
    s3.away = True
    with pytest.raises(UnreachableError) as failure:
        reader.read_at(512, 1000)
    text = str(failure.value)
    assert "shard s3://shards/set/00000.tar, bytes 512 to 1,512: no answer after " in text
    assert "attempts in 60 s; the last: " in text
    assert "--resume latest" in text
    # Neither an absent object nor an empty folder.
    with pytest.raises(UnreachableError):
        store.is_file(path)
    with pytest.raises(UnreachableError):
        shards.expand("s3://shards/set/*.tar")


def test_pauses_grow_to_15_seconds_and_are_drawn():
    clock, pauses = Clock(), []

    def fail() -> None:
        raise storage.failures.PassingError("busy")

    def sleep(seconds: float) -> bool:
        pauses.append(seconds)
        return clock.sleep(seconds)

    with pytest.raises(UnreachableError):
        Patience(100, lambda: clock.now, sleep, lambda: 1.0).call(fail, "it")
    assert pauses[:8] == [0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 15, 15]
    assert clock.now == 100


def test_a_loader_that_is_closed_does_not_wait_for_a_store(s3):
    loader = TrainLoader("s3://shards/set/0*.tar", 16, 6, seed=3)
    batches = iter(loader)
    next(batches)
    store = storage_of("s3://shards/set")
    assert isinstance(store, ObjectStorage)
    store._patience = Patience(600)
    s3.away = True
    time.sleep(0.5)
    start = time.monotonic()
    batches.close()
    assert time.monotonic() - start < 10


def test_a_loader_that_is_closed_leaves_requests_that_are_never_answered(s3):
    batches = iter(TrainLoader("s3://shards/set/0*.tar", 2, 6, seed=3))
    next(batches)
    before = -1
    while before != (before := s3.met["GET"]):
        time.sleep(1)
    s3.spoil(["stall"] * 400)
    # One that is there; the next is asked for.
    next(batches)
    deadline = time.monotonic() + 60
    while not s3.met["stall"]:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    start = time.monotonic()
    batches.close()
    assert time.monotonic() - start < 8


def test_missing_shards_are_named_and_their_folder_too(s3):
    with pytest.raises(FileNotFoundError, match="2 of 5 shards are missing: s3://shards/set/00003"):
        shards.expand("s3://shards/set/{00000..00004}.tar")
    with pytest.raises(FileNotFoundError, match="there is no folder 's3://shards/nothing'"):
        shards.expand("s3://shards/nothing/0.tar")
    with pytest.raises(FileNotFoundError, match="matched nothing"):
        shards.expand("s3://shards/set/9*.tar")
    assert shards.expand("s3://shards/set") == shards.expand("s3://shards/set/*.tar")


def test_a_web_server_is_asked_for_each_shard_and_lists_none(any_web):
    with pytest.raises(FileNotFoundError, match="2 of 5 shards are missing"):
        shards.expand(address(any_web) + "/{00000..00004}.tar")
    with pytest.raises(ValueError, match=r"a web server lists nothing.*brace range"):
        shards.expand(address(any_web) + "/*.tar")


def test_what_a_store_refuses_is_not_asked_again(s3, monkeypatch):
    # moto answers 400 and 404, never 403: the proxy stands in for a bucket of somebody else.
    original = s3._ask

    async def forbid(*_: object) -> tuple[bytes, bytes]:
        return b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n", b""

    monkeypatch.setattr(s3, "_ask", forbid)
    with pytest.raises(RefusedError, match=r"s3://shards: access denied.*AWS_ACCESS_KEY_ID"):
        shards.expand("s3://shards/set/*.tar")
    assert s3.met == {"HEAD": 1}
    monkeypatch.setattr(s3, "_ask", original)
    with pytest.raises(RefusedError, match="nothing can be written over http"):
        storage_of("http://x").write_atomic("http://x/a.tar", b"")


def test_a_path_holds_no_secret():
    with pytest.raises(ValueError, match=r"^s3://\.\.\.@bucket: a path holds no credentials") as it:
        storage.clients.place_of("s3://KEY:SECRET@bucket/0.tar")
    assert "SECRET" not in str(it.value)


def test_a_forked_process_says_that_it_cannot_read_a_store(s3):
    path = "s3://shards/set/00000.tar"
    reader = storage_of(path).open(path)
    there, here = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            reader.read_many([(0, 10)])
        except RuntimeError as error:
            os.write(here, str(error).encode())
        finally:
            os._exit(0)
    os.close(here)
    with os.fdopen(there) as pipe:
        assert "multiprocessing's 'spawn'" in pipe.read()
    os.waitpid(pid, 0)


def test_without_obstore_a_store_is_refused_with_what_to_install(monkeypatch):
    monkeypatch.setattr(storage, "has_obstore", lambda: False)
    monkeypatch.setattr(storage, "_storages", {})
    with pytest.raises(ValueError, match=r"s3:// is read by obstore.*pip install 'clipfast\[st"):
        storage_of("s3://b/0.tar")


def test_sizes_are_those_of_the_files(s3):
    assert [len(read_table(f"s3://shards/set/0000{i}.tar")) for i in range(3)] == list(SIZES)


def test_an_index_made_in_a_store_knows_the_shard_by_its_etag(s3, folder, caplog):
    path = "s3://shards/marked/0.tar"
    store, data = storage_of(path), (folder / "00000.tar").read_bytes()
    store.write_atomic(path, data)
    assert index.index_shards([path], workers=1, dali=False, progress=False).good == SIZES[0]
    mark = store.read("s3://shards/marked/0.idx").split(b"\n")[0].split()[2]
    assert mark.startswith(b"2:")
    here = (folder / "00000.idx").read_bytes().split(b"\n")[0].split()[2]
    assert here == mark[:-17].replace(b"2:", b"1:", 1)
    s3.met.clear()
    assert check_index(path) == SIZES[0]
    # The index alone was read.
    assert s3.met["GET"] == 1
    # Of the same size, with another byte: another ETag, and other parts.
    store.write_atomic(path, data[:5000] + bytes([data[5000] ^ 1]) + data[5001:])
    with pytest.raises(ValueError, match="other content than when it was indexed"):
        check_index(path)
    assert not caplog.records
    # The same bytes by another name of their version, as a copy elsewhere has.
    index_data = store.read("s3://shards/marked/0.idx")
    store.write_atomic(path, data)
    other = index_data.replace(mark[-16:], b"0123456789abcdef")
    store.write_atomic("s3://shards/marked/0.idx", other)
    assert check_index(path) == SIZES[0]
    assert "another ETag than when it was indexed" in caplog.text


def test_pack_writes_into_a_store(s3, folder, tmp_path):
    assert pack([str(folder / "pictures"), "--output", "s3://shards/packed", "--workers", "1"]) == 0
    assert shards.expand("s3://shards/packed/*.tar") == ["s3://shards/packed/00000.tar"]
    assert pack([str(folder / "pictures"), "--output", str(tmp_path), "--workers", "1"]) == 0
    there = storage_of("s3://x").read("s3://shards/packed/00000.tar")
    assert there == (tmp_path / "00000.tar").read_bytes()
