"""At the start each shard of a store is looked at once, over all ranks."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
import torch.distributed as dist

from clipfast.data import EvalLoader, TrainLoader
from clipfast.data.heads import counts
from clipfast.data.selection import Selection, choose
from clipfast.data.sidecar import Sidecar
from clipfast.data.table import identify
from clipfast.engine.agreement import Ranks
from clipfast.engine.config import DataConfig
from clipfast.engine.encoder import held
from clipfast.storage import storage_of
from tests.engine.plans import plan
from tests.ranks import run_ranks
from tests.storage.conftest import SIZES, address
from tests.storage.test_objects import assert_equal, take

pytestmark = pytest.mark.xdist_group("stores")

PATTERN = "/{00000..00002}.tar"


class Threads:
    """As many ranks as threads; each calls with its own instance."""

    def __init__(self, rank: int, world_size: int, barrier: threading.Barrier, said: dict) -> None:
        self.rank, self.world_size = rank, world_size
        self._barrier, self._said = barrier, said

    def share(self, make):
        return self._all(make if self.rank == 0 else lambda: None)[0]

    def gather(self, make):
        return self._all(make)

    def _all(self, make):
        self._said[self.rank] = make()
        self._barrier.wait(30)
        found = [self._said[rank] for rank in range(self.world_size)]
        self._barrier.wait(30)
        return found


def made_by(world_size: int, make: Callable[..., Any]) -> list:
    """What each of some ranks makes."""
    barrier, said = threading.Barrier(world_size), {}

    def of_rank(rank: int) -> Any:
        together = Threads(rank, world_size, barrier, said)
        return make(rank=rank, world_size=world_size, together=together)

    with ThreadPoolExecutor(world_size) as pool:
        return list(pool.map(of_rank, range(world_size)))


def loaders(pattern: str, world_size: int, batch: int = 6, **options) -> list[TrainLoader]:
    return made_by(
        world_size,
        lambda **place: TrainLoader(pattern, 16, batch, seed=3, window=8, **place, **options),
    )


@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_ask_together_what_one_rank_asks_alone(web, folder, world_size):
    pattern = address(web) + PATTERN
    alone = TrainLoader(pattern, 16, 6, seed=3, window=8)
    asked = dict(web.met)
    web.met.clear()
    ranks = loaders(pattern, world_size)
    assert dict(web.met) == asked
    assert all(rank.state_dict() == alone.state_dict() for rank in ranks)
    parts = [list(itertools.islice(rank, 4)) for rank in ranks]
    for batch, shares in zip(itertools.islice(alone, 4), zip(*parts, strict=True), strict=True):
        assert torch.equal(batch.images, torch.cat([share.images for share in shares]))
    assert_equal(take(pattern), take(str(folder) + PATTERN))


def test_a_selection_is_looked_up_by_turns(web, folder):
    shards = [f"{address(web)}/0000{number}.tar" for number in range(3)]
    choices = []
    for shard in shards[1:]:
        known = identify(shard)
        choices.append(choose(shard, known.samples, known.mark, range(0, known.samples, 2)))
    ranks = loaders(address(web) + PATTERN, 2, batch=2, select=Selection(choices))
    assert [rank.selected.counts.tolist() for rank in ranks] == [[0, 3, 5]] * 2
    alone = TrainLoader(str(folder) + PATTERN, 16, 2, seed=3, window=8, select=Selection(choices))
    assert ranks[0].state_dict() == alone.state_dict()


def test_another_micro_batch_looks_at_no_shard_again(web, folder):
    loader = TrainLoader(address(web) + PATTERN, 16, 6, seed=3, window=8)
    web.met.clear()
    loader.decode_by(2)
    assert not web.met
    local = take(str(folder) + PATTERN)
    for other, one in zip(local[:-1], loader, strict=False):
        assert torch.equal(torch.cat([part.images for part in one.parts(3)]), other.images)
    with pytest.raises(ValueError, match="micro_batch"):
        loader.decode_by(4)


def test_an_evaluation_looks_at_each_shard_once_over_all_ranks(web, folder):
    alone = EvalLoader(address(web) + PATTERN, 16, 6)
    asked = dict(web.met)
    web.met.clear()
    ranks = made_by(2, lambda **place: EvalLoader(address(web) + PATTERN, 16, 6, **place))
    assert dict(web.met) == asked
    whole = torch.cat([batch.images for batch in alone])
    parts = [torch.cat([batch.images for batch in rank]) for rank in ranks]
    assert torch.equal(torch.cat(parts), whole)
    web.met.clear()
    data = DataConfig(train="sample")

    def count(*, together, **_) -> int:
        return held(data, address(web) + PATTERN, "", together)

    assert made_by(2, count) == [sum(SIZES)] * 2
    # As one rank does: each shard is found, and its index and size are looked at.
    together = dict(web.met)
    web.met.clear()
    assert held(data, address(web) + PATTERN, "") == sum(SIZES)
    assert together == dict(web.met)


def write_tables(where: str, kept: range) -> list[Sidecar]:
    """Tables of captions beside shards: one of all, and one of each."""
    import pyarrow as pa
    from pyarrow import parquet

    rows = [(f"0000{i}", f"{row:04d}") for i, size in enumerate(SIZES) for row in range(size)]
    for name, mine in {
        "all": [row for row in rows if int(row[1]) in kept],
        **{f"0000{i}": [row for row in rows if row[0] == f"0000{i}"] for i in range(3)},
    }.items():
        table = pa.table(
            {
                "shard": [shard for shard, _ in mine],
                "key": [key for _, key in mine],
                "caption": [f"a table says {shard} {key}" for shard, key in mine],
            }
        )
        sink = pa.BufferOutputStream()
        parquet.write_table(table, sink)
        storage_of(where).write_atomic(f"{where}/{name}.parquet", sink.getvalue().to_pybytes())
    return [Sidecar((f"{where}/all.parquet",)), Sidecar((f"{where}/{{name}}.parquet",))]


@pytest.mark.parametrize("number", [0, 1])
def test_tables_of_captions_in_a_store_train_as_files_do(s3, folder, tmp_path, number):
    kept = range(1, 8) if number == 0 else range(10)
    here = write_tables(str(tmp_path), kept)[number]
    there = write_tables("s3://shards/captions", kept)[number]

    def options(sidecar: Sidecar, cache: str) -> dict:
        return {"caption_tables": sidecar, "caption_cache": str(tmp_path / cache)}

    local = take(str(folder) + PATTERN, 5, **options(here, "here"))
    pattern = "s3://shards/set" + PATTERN
    assert_equal(take(pattern, 5, **options(there, "there")), local)
    # Found again: each index is looked at once, and no table is read.
    asked = []
    for world_size in (1, 2):
        s3.met.clear()
        ranks = loaders(pattern, world_size, batch=4, **options(there, "there"))
        asked.append(dict(s3.met))
        assert len({rank.state_dict()["captions"] for rank in ranks}) == 1
    assert asked[0] == asked[1]
    assert sum(asked[0].values()) <= (22 if number else 20)
    loader = ranks[0]
    assert loader.captions.texts(0, 2) == ["a table says 00000 0002"]
    # A copy of what is read has pictures, and no caption of the tar.
    table = loader.reader.table(0)
    assert sorted(loader.reader.ranges(0)[:, 0].tolist()) == sorted(table.image_offset.tolist())
    assert len(table) == SIZES[0] - (number == 0)


def test_a_table_of_captions_in_a_store_that_was_written_anew_is_read_anew(s3, folder, tmp_path):
    sidecar, _ = write_tables("s3://shards/anew", range(1, 8))
    options = {"caption_tables": sidecar, "caption_cache": str(tmp_path)}
    pattern = "s3://shards/set" + PATTERN
    first = TrainLoader(pattern, 16, 4, **options)
    write_tables("s3://shards/anew", range(2, 8))
    second = TrainLoader(pattern, 16, 4, **options)
    assert len(first.order) == sum(SIZES) - 4
    assert len(second.order) == sum(SIZES) - 7
    storage_of("s3://x").remove("s3://shards/anew/all.parquet")
    with pytest.raises(FileNotFoundError, match=r"s3://shards/anew/all\.parquet' is not there"):
        TrainLoader(pattern, 16, 4, **options)
    listed = Sidecar(("s3://shards/anew/0*.parquet",))
    third = TrainLoader(pattern, 16, 4, caption_tables=listed, caption_cache=str(tmp_path))
    assert len(third.order) == sum(SIZES)


def test_each_rank_looks_at_files_of_its_own_machine(folder):
    class Never:
        rank, world_size = 0, 2

        def share(self, make):
            raise AssertionError

        gather = share

    loader = TrainLoader(str(folder) + PATTERN, 16, 6, together=Never())
    assert len(loader.order) == sum(SIZES)


def test_many_shards_of_a_store_take_a_listing_and_a_request_each(s3, folder):
    store = storage_of("s3://shards")
    shards = [f"s3://shards/many/{number:03d}.tar" for number in range(40)]
    for shard in shards:
        for kind in ("tar", "idx"):
            store.write_atomic(shard[:-3] + kind, (folder / f"00000.{kind}").read_bytes())
    s3.met.clear()
    assert counts(shards).tolist() == [SIZES[0]] * 40
    # 80 objects, one page.
    assert s3.met == {"GET": 41}
    store.remove(shards[7][:-3] + "idx")
    store.remove(shards[9])
    with pytest.raises(FileNotFoundError, match="009"):
        counts(shards)
    assert counts(shards[:9]).tolist() == [SIZES[0]] * 9


@pytest.mark.parametrize("fault", ["503", "cut", "short", "reset"])
def test_an_index_whose_answer_is_spoilt_is_asked_for_again(s3, folder, fault):
    path = "s3://shards/set/00002.idx"
    data = (folder / "00002.idx").read_bytes()
    store = storage_of(path)
    s3.spoil([fault, None, fault, None, fault])
    assert store.read(path) == data
    assert store.read_start(path, 20) == data[:20]
    assert store.read_start(path, 10**6) == data
    storage_of(path).write_atomic("s3://shards/set/empty", b"")
    assert storage_of(path).read("s3://shards/set/empty") == b""
    assert s3.met[fault] == 3


def _said() -> list[str]:
    process = plan(ranks=2, rank=dist.get_rank(), batch_size=2).process
    ranks = Ranks(process)
    said = [str(ranks.share(lambda: process.rank)), str(ranks.gather(lambda: process.rank))]

    def fail() -> None:
        if process.rank == 1:
            raise FileNotFoundError("s3://b/1.tar is not there")

    try:
        ranks.gather(fail)
    except FileNotFoundError as error:
        said.append(str(error))
    try:
        ranks.share(lambda: int("x"))
    except ValueError as error:
        said.append(str(error))
    return said


def test_what_one_rank_fails_by_all_ranks_raise():
    for said in run_ranks(2, _said):
        assert said[:3] == ["0", "[0, 1]", "s3://b/1.tar is not there"]
        assert "invalid literal" in said[3]
