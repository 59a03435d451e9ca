"""Captions that stand in tables beside the shards."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest

from clipfast.data import EvalLoader, TrainLoader, index
from clipfast.data.fields import Fields, without_captions
from clipfast.data.indexfile import write_index
from clipfast.data.order import SampleRefs
from clipfast.data.scan import scan
from clipfast.data.sidecar import Sidecar
from clipfast.data.sidecar.join import join
from clipfast.data.sources import Mixing
from clipfast.data.table import read_table
from tests.data.tars import END, member
from tests.data.test_folders import picture
from tests.data.test_selecting import assert_same, selection_of

NO_CAPTIONS = without_captions(Fields())

pytestmark = pytest.mark.needs("pyarrow")


def write_parquet(path: Path, **columns) -> Path:
    import pyarrow
    from pyarrow import parquet

    parquet.write_table(pyarrow.table(columns), path)
    return path


def write_shard(path: Path, keys: list[str], own: bool = True, indexed: bool = True) -> str:
    """Pictures of some keys, which the name of the shard makes its own; with a caption or not."""
    parts = []
    for number, key in enumerate(keys):
        parts.append(member(f"{key}.jpg", picture(13 * number + len(path.stem))))
        if own:
            parts.append(member(f"{key}.txt", f"own {path.stem} {key}".encode()))
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"".join(parts) + END)
    if indexed:
        fields = Fields() if own else Fields(captions=("elsewhere",))
        found = scan(str(path), fields)
        write_index(str(path), [sample.entry for sample in found if sample.entry], fields)
    return str(path)


def shards_in(folder: Path, **options) -> list[str]:
    """Two shards of 7 and 5 samples, with keys as img2dataset counts them."""
    return [
        write_shard(folder / f"{n:05d}.tar", [f"{n:05d}{i:04d}" for i in range(size)], **options)
        for n, size in enumerate((7, 5))
    ]


def keys_of(shards: list[str]) -> list[str]:
    return list(itertools.chain(*(read_table(shard, NO_CAPTIONS).keys() for shard in shards)))


def table_of(folder: Path, shards: list[str]) -> dict[str, list[str]]:
    """Two captions of each sample; of the third of each shard none."""
    keys = keys_of(shards)
    keys = [key for key in keys if not key.endswith("0002")]
    return {"key": [*keys, *keys], "caption": [f"{key} {n}" for n in "ab" for key in keys]}


def train(shards, sidecar, tmp_path, **options) -> TrainLoader:
    options = {"seed": 3, "window": 5, "threads": 1, "caption_cache": str(tmp_path / "joined")} | (
        options
    )
    return TrainLoader(shards, 16, 2, caption_tables=sidecar, **options)


def all_captions(loader: TrainLoader) -> dict[str, list[str]]:
    reader = loader.reader
    return {
        reader.key(shard, row): reader.captions(shard, row)
        for shard in range(len(loader.shards))
        for row in range(len(reader.table(shard)))
    }


@pytest.mark.parametrize("indexed", [True, False])
@pytest.mark.parametrize("own", [True, False])
def test_one_table_of_all_shards_gives_the_captions_of_each_key(tmp_path, own, indexed):
    shards = shards_in(tmp_path, own=own, indexed=indexed)
    table = table_of(tmp_path, shards)
    path = write_parquet(tmp_path / "all.parquet", url=["x"] * len(table["key"]), **table)
    loader = train(shards, Sidecar((str(path),)), tmp_path)
    expected = {key: [f"{key} a", f"{key} b"] for key in table["key"]}
    assert all_captions(loader) == expected
    assert len(loader.order) == 10
    assert loader.contents.endswith(
        f"; 20 captions of 10 of 12 samples in {path}, 2 have none there and are left out, such as "
        "'000000002' of 00000.tar"
    )
    # Both captions are drawn, by epoch; an evaluation takes the first.
    samples = SampleRefs(np.zeros(6, np.int64), np.arange(6))
    drawn = {c for epoch in range(9) for c in loader.reader.fetch(samples, epoch=epoch).captions}
    assert drawn == {c for key, texts in expected.items() if key < "00001" for c in texts}
    evaluation = EvalLoader(shards, 16, 4, caption_tables=Sidecar((str(path),)), threads=1)
    assert len(evaluation) == 10


def test_samples_without_a_row_take_their_own_caption_where_that_is_asked_for(tmp_path):
    shards = shards_in(tmp_path)
    path = write_parquet(tmp_path / "all.parquet", **table_of(tmp_path, shards))
    loader = train(shards, Sidecar((str(path),), missing="own"), tmp_path)
    found = all_captions(loader)
    assert len(found) == len(loader.order) == 12
    assert found["000010002"] == ["own 00001 000010002"]
    assert found["000010001"] == ["000010001 a", "000010001 b"]
    assert "2 have none there and take their own, if they have one" in loader.contents
    captions = loader.reader.fetch(SampleRefs(np.zeros(7, np.int64), np.arange(7))).captions
    assert captions[2] == "own 00000 000000002"
    # Those that have none of their own either are left out.
    bare = write_shard(
        tmp_path / "bare" / "00000.tar", ["000000002", "000000003", "000000004"], own=False
    )
    other = train([bare], Sidecar((str(path),), missing="own"), tmp_path)
    assert list(all_captions(other)) == ["000000003", "000000004"]


@pytest.mark.parametrize("ending", ["parquet", "csv", "tsv"])
def test_a_table_per_shard_as_img2dataset_writes_it(tmp_path, ending):
    shards = shards_in(tmp_path)
    for shard in shards:
        keys = read_table(shard).keys()[:4]
        columns = {"url": ["u"] * 5, "key": [*keys, "none"], "caption": [f"new {k}" for k in keys]}
        columns["caption"].append("of no sample")
        path = Path(shard).with_suffix(f".{ending}")
        if ending == "parquet":
            write_parquet(path, **columns)
        else:
            mark = "," if ending == "csv" else "\t"
            rows = [columns, *zip(*columns.values(), strict=True)]
            path.write_text("\r\n".join(mark.join(row) for row in rows))
    for pattern in ("{shard}." + ending, str(tmp_path) + "/{name}." + ending):
        loader = train(shards, Sidecar((pattern,)), tmp_path)
        keys = [key for shard in shards for key in read_table(shard).keys()[:4]]
        assert all_captions(loader) == {key: [f"new {key}"] for key in keys}
        assert "; 2 keys there are of no sample" in loader.contents
    Path(shards[1]).with_suffix(f".{ending}").unlink()
    with pytest.raises(FileNotFoundError, match="1 of 2 tables of captions are missing"):
        train(shards, Sidecar(("{shard}." + ending,)), tmp_path)


def test_a_column_of_shards_tells_samples_of_one_key_apart(tmp_path):
    shards = [write_shard(tmp_path / f"{name}.tar", ["0", "1", "2"]) for name in "ab"]
    names = ["a.tar", "folder/b", "b.tar", "a"]
    path = write_parquet(
        tmp_path / "all.parquet", key=["0", "0", "1", "1"], shard=names, caption=[*"pqrs"]
    )
    loader = train(shards, Sidecar((str(path),)), tmp_path)
    assert [loader.reader.caption(shard, row) for shard in (0, 1) for row in (0, 1)] == [*"psqr"]
    with pytest.raises(ValueError, match=r"key '0' is in .*a\.tar and in .*b\.tar, and the tables"):
        train(shards, Sidecar((str(path),), shard=""), tmp_path)
    other = write_shard(tmp_path / "more" / "a.tar", ["7"])
    with pytest.raises(ValueError, match="have one name, and the column 'shard' of the tables"):
        train([*shards, other], Sidecar((str(path),)), tmp_path)


def test_keys_that_a_shard_has_twice_are_no_captions_of_either(tmp_path):
    shard = write_shard(tmp_path / "a.tar", ["0", "1", "1"])
    assert len(read_table(shard)) == 3
    path = write_parquet(tmp_path / "all.parquet", key=["1", "0"], caption=["x", "y"])
    with pytest.raises(ValueError, match=r"a\.tar has several samples of key '1'"):
        train([shard], Sidecar((str(path),)), tmp_path)
    path = write_parquet(tmp_path / "other.parquet", key=["0", "2"], caption=["y", "z"])
    loader = TrainLoader(
        [shard], 16, 1, caption_tables=Sidecar((str(path),)), caption_cache=str(tmp_path / "c")
    )
    assert len(loader.order) == 1


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_run_goes_on_with_the_same_captions_alone(tmp_path, ranks):
    shards = shards_in(tmp_path)
    columns = table_of(tmp_path, shards)
    path = write_parquet(tmp_path / "all.parquet", **columns)
    sidecar = Sidecar((str(path),))
    whole = list(itertools.islice(train(shards, sidecar, tmp_path), 7))
    first = train(shards, sidecar, tmp_path)
    list(itertools.islice(first, 3))
    state = first.state_dict()
    for rank in range(ranks):
        part = train(shards, sidecar, tmp_path, rank=rank, world_size=ranks)
        part.load_state_dict(state)
        batch = next(iter(part))
        mine = slice(rank * 2 // ranks, (rank + 1) * 2 // ranks)
        assert batch.tokens[:, :6].equal(whole[3].tokens[mine, :6])
        assert batch.images.equal(whole[3].images[mine])
    # The same captions, as CSV and in another place.
    moved = tmp_path / "moved.csv"
    rows = zip(columns["key"], columns["caption"], strict=True)
    moved.write_text("key,caption\n" + "\n".join(map(",".join, rows)))
    train(shards, Sidecar((str(moved),)), tmp_path).load_state_dict(state)
    columns["caption"][3] = "another"
    write_parquet(path, **columns)
    with pytest.raises(ValueError, match=r"captions was .*, is "):
        train(shards, sidecar, tmp_path).load_state_dict(state)
    with pytest.raises(ValueError, match=r"captions was .*, is None"):
        TrainLoader(shards, 16, 2, seed=3, window=5).load_state_dict(state)


def test_a_selection_of_captioned_samples_is_what_is_left_of_both(tmp_path):
    shards = shards_in(tmp_path)
    path = write_parquet(tmp_path / "all.parquet", **table_of(tmp_path, shards))
    keep = {"00000.tar": [0, 2, 5], "00001.tar": [1, 4]}
    loader = train(shards, Sidecar((str(path),)), tmp_path, select=selection_of(shards, keep))
    assert list(all_captions(loader)) == ["000000000", "000000005", "000010001", "000010004"]
    assert len(loader.order) == 4
    none = selection_of(shards, {"00000.tar": [2], "00001.tar": [2]})
    with pytest.raises(ValueError, match="none of the 2 samples that are selected has a caption"):
        train(shards, Sidecar((str(path),)), tmp_path, select=none)


def test_each_source_of_a_mixture_has_tables_of_its_own_or_none(tmp_path):
    one = write_shard(tmp_path / "one" / "0.tar", ["0", "1", "2"], own=False)
    two = write_shard(tmp_path / "two" / "0.tar", ["0", "1"])
    path = write_parquet(tmp_path / "one.parquet", key=["0", "2"], caption=["zero", "two"])
    sources = {"one": one, "two": two}
    loader = train(
        sources,
        {"one": Sidecar((str(path),))},
        tmp_path,
        mixing=Mixing(weights={"one": 1, "two": 1}),
    )
    assert loader.order.counts.tolist() == [2, 2]
    texts = [loader.reader.caption(shard, row) for shard in (0, 1) for row in (0, 1)]
    assert texts == ["zero", "two", "own 0 0", "own 0 1"]
    assert len(list(itertools.islice(loader, 4))) == 4
    with pytest.raises(ValueError, match="captions of 'three': it is no source"):
        train(sources, {"three": Sidecar((str(path),))}, tmp_path)


def test_the_index_of_pictures_alone(tmp_path):
    shard = write_shard(tmp_path / "0.tar", ["0", "1", "b/c"], own=False, indexed=False)
    fields = Fields(captions=("elsewhere",))
    assert index.main([shard, "--captions", "elsewhere", "--no-dali"]) == 0
    assert read_table(shard, fields).keys() == ["0", "1", "b/c"]
    with pytest.raises(ValueError, match="does not hold an image and a caption"):
        read_table(shard)
    lines = Path(shard).with_suffix(".idx").read_text().splitlines()
    assert lines[1].split()[0::3] == ["jpg", "0.jpg"]


def test_joined_captions_are_found_again_and_made_anew_where_something_changed(tmp_path):
    shards = shards_in(tmp_path)
    path = write_parquet(tmp_path / "all.parquet", **table_of(tmp_path, shards))
    sidecar, folder = Sidecar((str(path),)), tmp_path / "joined"
    first = join(sidecar, shards, Fields(), str(folder))
    stamp = Path(first.path).stat().st_ino
    again = join(sidecar, shards, Fields(), str(folder))
    assert (again.path, Path(again.path).stat().st_ino) == (first.path, stamp)
    Path(first.path).write_bytes(Path(first.path).read_bytes()[:-9])
    assert join(sidecar, shards, Fields(), str(folder)).digest == first.digest
    write_shard(tmp_path / "00001.tar", ["000010000", "000010001"])
    other = join(sidecar, shards, Fields(), str(folder))
    assert other.path != first.path
    assert other.digest != first.digest
    assert (other.shards[0], other.texts(0, 1)) == (first.shards[0], first.texts(0, 1))
    # A loader that was made before is not led astray.
    loader = train(shards, sidecar, tmp_path)
    write_shard(tmp_path / "00001.tar", ["000010001", "000010000"])
    with pytest.raises(ValueError, match="has changed since its captions were looked up"):
        loader.reader.table(1)


def test_captions_in_tables_change_no_picture_and_no_order(tmp_path):
    shards = shards_in(tmp_path)
    keys = keys_of(shards)
    names = [shard for shard, size in (("00000", 7), ("00001", 5)) for _ in range(size)]
    own = [f"own {name} {key}" for name, key in zip(names, keys, strict=True)]
    path = write_parquet(tmp_path / "all.parquet", key=keys, caption=own)
    chosen = train(shards, Sidecar((str(path),)), tmp_path)
    plain = TrainLoader(shards, 16, 2, seed=3, window=5, threads=1)
    assert_same(itertools.islice(chosen, 9), itertools.islice(plain, 9))
