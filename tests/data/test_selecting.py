"""A selection that the loaders obey: the same bits as of shards that hold what it keeps alone."""

import itertools
from pathlib import Path

import numpy as np
import pytest

from clipfast.data import EvalLoader, TrainLoader
from clipfast.data.catalogue import look_up
from clipfast.data.fields import FIELDS
from clipfast.data.indexfile import write_index
from clipfast.data.scan import scan
from clipfast.data.selecting import Selected
from clipfast.data.selection import Selection, choose, write_selection
from clipfast.data.sources import find_sources
from clipfast.data.table import identify, read_table
from tests.data.tars import END, member
from tests.data.test_folders import picture

KEPT = {"a.tar": [0, 3, 4, 9, 10], "b.tar": [], "c.tar": [*range(1, 12, 2)]}
NAMED = tuple(KEPT)


def shard(folder: Path, name: str, rows: list[int]) -> str:
    folder.mkdir(exist_ok=True)
    parts = [
        member(f"{row:03d}.jpg", picture(17 * row + ord(name[0])))
        + member(f"{row:03d}.txt", f"{name} {row}".encode())
        for row in rows
    ]
    # Of no sample there is an index still.
    parts = parts or [member("none.cls", b"1")]
    path = folder / name
    path.write_bytes(b"".join(parts) + END)
    write_index(str(path), [sample.entry for sample in scan(str(path)) if sample.entry])
    return str(path)


def selection_of(shards: list[str], keep: dict[str, list[int]] = KEPT) -> Selection:
    choices = []
    for path in shards:
        if Path(path).name in keep:
            found = identify(path)
            choices.append(choose(path, found.samples, found.mark, keep[Path(path).name]))
    return Selection(choices, "s.parquet")


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> list[str]:
    """Three shards of 12, and one that no selection names."""
    folder = tmp_path_factory.mktemp("whole")
    return [shard(folder, name, list(range(12))) for name in (*NAMED, "d.tar")]


@pytest.fixture(scope="module")
def rewritten(tmp_path_factory) -> list[str]:
    folder = tmp_path_factory.mktemp("rewritten")
    return [shard(folder, name, KEPT.get(name, [])) for name in (*NAMED, "d.tar")]


def train(shards: list[str], **options) -> TrainLoader:
    return TrainLoader(shards, 16, 4, seed=3, window=5, threads=1, **options)


def assert_same(batches, others) -> None:
    for batch, other in zip(batches, others, strict=True):
        assert batch.images.equal(other.images)
        assert batch.tokens.equal(other.tokens)
        assert (batch.shard == other.shard).all()
        assert (batch.row == other.row).all()
        assert (batch.epoch, batch.index) == (other.epoch, other.index)


def assert_share(batch, whole, rank: int, ranks: int) -> None:
    """A rank's batch is its share of what one rank alone has."""
    share = len(whole.row) // ranks
    mine = slice(rank * share, (rank + 1) * share)
    assert (batch.shard == whole.shard[mine]).all()
    assert (batch.row == whole.row[mine]).all()
    assert batch.images.equal(whole.images[mine])


def test_a_selection_trains_as_the_same_shards_rewritten(whole, rewritten):
    chosen = train(whole, select=selection_of(whole))
    other = train(rewritten)
    batches = list(itertools.islice(chosen, 7))
    assert_same(batches, itertools.islice(other, 7))
    keys = {chosen.reader.key(s, r) for b in batches for s, r in zip(b.shard, b.row, strict=True)}
    assert keys <= {f"{row:03d}" for rows in KEPT.values() for row in rows}
    assert chosen.contents == (
        "11 pairs in 4 shard(s), as s.parquet selects of 36; it leaves out 1 shard(s) whole, which "
        "it does not name"
    )


def test_an_evaluation_of_a_selection_is_that_of_the_shards_rewritten(whole, rewritten):
    chosen = EvalLoader(whole, 16, 4, threads=1, select=selection_of(whole))
    other = EvalLoader(rewritten, 16, 4, threads=1)
    assert len(chosen) == len(other) == 11
    assert_same(chosen, other)


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_a_run_of_a_selection_goes_on_at_any_batch_on_other_ranks(whole, ranks):
    selection = selection_of(whole)
    batches = list(itertools.islice(train(whole, select=selection), 5))
    first = train(whole, select=selection)
    for taken, _ in enumerate(itertools.islice(first, 4), 1):
        state = first.state_dict()
        for rank in range(ranks):
            part = train(whole, select=selection, rank=rank, world_size=ranks)
            part.load_state_dict(state)
            batch = next(iter(part))
            mine = slice(rank * 4 // ranks, (rank + 1) * 4 // ranks)
            assert (batch.shard == batches[taken].shard[mine]).all()
            assert (batch.row == batches[taken].row[mine]).all()
            assert batch.images.equal(batches[taken].images[mine])


def test_a_state_goes_on_with_its_own_selection_alone(whole):
    selection = selection_of(whole)
    state = train(whole, select=selection).state_dict()
    other = selection_of(whole, KEPT | {"a.tar": [0, 3, 4, 9, 11]})
    assert selection.kept == other.kept
    with pytest.raises(ValueError, match=r"selection was .*, is "):
        train(whole, select=other).load_state_dict(state)
    with pytest.raises(ValueError, match=r"selection was .*, is None"):
        train(whole).load_state_dict(state)
    plain = train(whole).state_dict()
    assert "selection" not in plain
    everything = selection_of(whole, {Path(path).name: [*range(12)] for path in whole})
    with pytest.raises(ValueError, match=r"selection was None, is "):
        train(whole, select=everything).load_state_dict(plain)
    train(whole).load_state_dict(plain)


def select(selection: Selection, shards: list[str]) -> Selected | None:
    return look_up(find_sources(shards), FIELDS, select=selection).selected


def test_select_refuses_what_does_not_fit(whole, tmp_path):
    selection = selection_of(whole)
    fewer = shard(tmp_path, "a.tar", list(range(11)))
    with pytest.raises(ValueError, match=r"made of another index of .*a\.tar \(12 samples, this"):
        select(selection, [fewer])
    others = shard(tmp_path / "others", "a.tar", list(range(1, 13)))
    with pytest.raises(ValueError, match="with other keys or other places in the tar"):
        train([others], select=selection)
    with pytest.raises(ValueError, match=r"names none of the 1 shards, such as d\.tar; it names 3"):
        select(selection, whole[3:])
    with pytest.raises(ValueError, match=r"keeps none of the 12 samples of 1 shards"):
        select(selection, whole[1:2])
    assert "2 shard(s) that it names are not read" in str(select(selection, whole[:1]))


def test_a_table_that_changed_since_it_was_selected_is_refused(tmp_path):
    path = shard(tmp_path, "a.tar", list(range(12)))
    loader = train([path], select=selection_of([path]))
    entries = [sample.entry for sample in scan(path) if sample.entry]
    write_index(path, entries[::-1])
    assert len(read_table(path)) == 12
    with pytest.raises(ValueError, match=r"a\.tar or its index has changed since its selection"):
        next(iter(loader))


@pytest.mark.needs("pyarrow")
def test_a_selection_is_read_from_its_file_and_broken_samples_are_named_by_key(whole, tmp_path):
    path = str(tmp_path / "s.parquet")
    write_selection(path, selection_of(whole).choices)
    loader = train(whole, select=path)
    assert len(loader.order) == 11
    table = loader.reader.table(0)
    assert table.keys() == [f"{row:03d}" for row in KEPT["a.tar"]]
    assert loader.reader.caption(0, 3) == "a.tar 9"
    assert "sample '009' of shard" in str(loader.reader.broken(0, 3, "image is odd"))
    assert np.array_equal(table.rows, KEPT["a.tar"])
