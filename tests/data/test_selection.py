"""clipfast.data.selection: the file, and what it is refused for."""

from pathlib import Path

import numpy as np
import pytest

from clipfast.data.indexfile import write_index
from clipfast.data.scan import scan
from clipfast.data.selection import (
    Selection,
    ShardChoice,
    choose,
    read_selection,
    write_selection,
)
from clipfast.data.table import identify, read_table
from tests.data.tars import END, pair

MARK = "0123456789abcdef"


def some_choices():
    generator = np.random.default_rng(0)
    sizes = {"a.tar": 0, "b.tar": 1, "c.tar": 8, "d.tar": 1003}
    for name, samples in sizes.items():
        rows = np.flatnonzero(generator.random(samples) < 0.4)
        yield choose(f"/folder/{name}", samples, MARK, rows), rows


@pytest.mark.needs("pyarrow")
def test_write_selection_reads_back_the_same_rows_and_digest_in_any_order(tmp_path):
    path = str(tmp_path / "s.parquet")
    made = list(some_choices())
    digest = write_selection(path, [choice for choice, _ in made[::-1]], {"by": ["a person"]})
    found = read_selection(path)
    assert found.digest == digest == Selection([choice for choice, _ in made]).digest
    assert found.made == '{"by": ["a person"]}'
    for (choice, rows), read in zip(made, found.choices, strict=True):
        assert read == choice
        assert (read.rows() == rows).all()
        assert read.kept == len(rows)
    assert found.kept == sum(len(rows) for _, rows in made)
    other = choose("d.tar", 1003, MARK, [5])
    assert Selection([other]).digest != Selection([choose("d.tar", 1003, MARK, [6])]).digest


@pytest.mark.parametrize("rows", [[3, 3], [-1], [4], [0.5], 2])
def test_choose_refuses_rows_that_are_not_there(rows):
    with pytest.raises(ValueError, match=r"rows count from|named twice|whole numbers"):
        choose("a.tar", 4, MARK, rows)


def test_shard_choice_refuses_bits_behind_the_last_sample():
    assert ShardChoice("a.tar", 4, MARK, b"\x0f").kept == 4
    for keep in (b"\x1f", b"\x0f\0", b""):
        with pytest.raises(ValueError, match="bytes of bits for 4 samples"):
            ShardChoice("a.tar", 4, MARK, keep)


def test_selection_tells_shards_of_one_name_by_their_mark_and_refuses_another_index():
    marks = ["0" * 16, "1" * 16]
    selection = Selection([choose("a.tar", 4, marks[n], [n]) for n in (0, 1)], "s.parquet")
    for n, mark in enumerate(marks):
        found = selection.choice("/other/folder/a.tar", 4, mark)
        assert found is not None
        assert found.rows().tolist() == [n]
    assert selection.choice("b.tar", 4, marks[0]) is None
    with pytest.raises(ValueError, match=r"another index of x/a\.tar \(4 or 4 samples, this one"):
        selection.choice("x/a.tar", 5, marks[0])
    one = Selection([choose("a.tar", 4, marks[0], [0])], "s.parquet")
    with pytest.raises(ValueError, match="this one has 4, with other keys or other places"):
        one.choice("a.tar", 4, marks[1])
    with pytest.raises(ValueError, match=r"names shard a\.tar of one index twice"):
        Selection([choose("a.tar", 4, marks[0], [0])] * 2)


@pytest.mark.needs("pyarrow")
def test_read_selection_refuses_what_is_none(tmp_path):
    import pyarrow
    from pyarrow import parquet

    path = str(tmp_path / "s.parquet")
    write_selection(path, [choice for choice, _ in some_choices()])
    table = parquet.read_table(path)
    meta = table.schema.metadata
    kept = table.column_names.index("kept")
    more = pyarrow.array([number + 1 for number in table.column("kept").to_pylist()])
    other = [bytes(len(keep)) for keep in table.column("keep").to_pylist()]
    nothing = pyarrow.array([0] * len(other))
    emptied = table.set_column(kept, "kept", nothing).set_column(
        table.column_names.index("keep"), "keep", pyarrow.array(other, pyarrow.binary())
    )
    for wrong, why in (
        (table.replace_schema_metadata({}), "no word of clipfast"),
        (table.replace_schema_metadata(meta | {b"clipfast.selection": b"3"}), "another version"),
        (table.append_column("weight", table.column("kept")), "has the columns"),
        (table.set_column(kept, "kept", more), "bits are set"),
        (emptied, "damaged: its rows have not the digest"),
    ):
        parquet.write_table(wrong, path)
        with pytest.raises(ValueError, match=why):
            read_selection(path)
    (tmp_path / "s.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(ValueError, match="is no Parquet file"):
        read_selection(path)
    with pytest.raises(OSError, match=r"none\.parquet"):
        read_selection(str(tmp_path / "none.parquet"))


def test_identify_is_the_same_with_and_without_an_index_of_all_samples(tmp_path):
    path = tmp_path / "a.tar"
    path.write_bytes(b"".join(pair(f"k {n}%") for n in range(5)) + END)
    shard = str(path)
    scanned = identify(shard)
    entries = [sample.entry for sample in scan(shard) if sample.entry]
    index = Path(write_index(shard, entries))
    assert scanned.samples == len(read_table(shard)) == 5
    assert identify(shard) == scanned
    first, _, lines = index.read_bytes().partition(b"\n")
    index.write_bytes(b" ".join(first.split()[:2]) + b"\n" + lines)
    assert identify(shard) == scanned
    write_index(shard, entries[:4])
    assert identify(shard) != scanned
