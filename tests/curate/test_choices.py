"""Chosen captions and weights: from match and balance to what training reads."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from clipfast.curate import main
from clipfast.curate.select.combine import combine
from clipfast.data import TrainLoader
from clipfast.data.selection import Selection, choose, read_selection, write_selection
from clipfast.data.sidecar import Sidecar
from clipfast.data.table import identify
from tests.curate.shards import make_shard, png

pytestmark = pytest.mark.needs("pyarrow", "ftfy")

# Of each sample, its captions: the query "cat" is in the first, the second, both or none of them.
CAPTIONS = {
    "a": ["a cat", "a thing"],
    "b": ["a thing", "my cat"],
    "c": ["one cat", "two cat"],
    "d": ["a thing", "another"],
    "e": ["a dog", "a cat"],
}


@pytest.fixture
def shard(tmp_path) -> str:
    """A tar whose captions stand in a table beside it; that of "f" has no row."""
    import pyarrow
    from pyarrow import parquet

    path = tmp_path / "0.tar"
    made = make_shard(path, [(key, f"own {key}", png((i, 0, 0))) for i, key in enumerate("abcdef")])
    keys = [key for key, texts in CAPTIONS.items() for _ in texts]
    texts = [text for texts in CAPTIONS.values() for text in texts]
    parquet.write_table(pyarrow.table({"key": keys, "caption": texts}), tmp_path / "0.parquet")
    return made


TABLES = ["--caption-files", "{shard}.parquet"]


def matched(shard: str, folder: Path, queries: str) -> list[str]:
    (folder / "q.txt").write_text(queries)
    out = str(folder / "matches")
    options = ["--queries", str(folder / "q.txt"), "--out", out, "--workers", "1"]
    options += ["--caption-cache", str(folder / "joined")]
    assert main(["match", shard, *options, *TABLES]) == 0
    return ["balance", out, "--workers", "1"]


def train(shard: str, folder: Path, select: str, **options) -> TrainLoader:
    tables = Sidecar(("{shard}.parquet",))
    options = {"caption_tables": tables, "caption_cache": str(folder / "joined")} | options
    return TrainLoader(shard, 16, 2, select=select, threads=1, **options)


def test_a_pair_trains_with_the_caption_that_holds_a_query(shard, tmp_path, capsys):
    balance = matched(shard, tmp_path, "cat\n")
    out = str(tmp_path / "s.parquet")
    assert main([*balance, "--captions", "matched", "--out", out]) == 0
    assert "4 of 6 pairs" in capsys.readouterr().out
    loader = train(shard, tmp_path, out)
    found = {loader.reader.key(0, row): loader.reader.captions(0, row) for row in range(4)}
    assert found == {"a": ["a cat"], "b": ["my cat"], "c": ["one cat"], "e": ["a cat"]}
    refs = loader.order.locate(0, 0, 4)
    for epoch in range(5):
        assert loader.reader.fetch(refs, epoch=epoch).captions == [
            found["abce"[row]][0] for row in refs.row
        ]
    # Without it all captions are drawn from.
    assert main([*balance, "--out", out]) == 0
    assert len(train(shard, tmp_path, out).reader.captions(0, 0)) == 2
    # Numbers of these captions are no numbers of others.
    assert main([*balance, "--captions", "matched", "--out", out]) == 0
    with pytest.raises(ValueError, match="chooses among the captions"):
        train(shard, tmp_path, out, caption_tables=None)


def test_a_row_that_is_written_anew_is_matched_anew(shard, tmp_path, capsys):
    import pyarrow
    from pyarrow import parquet

    matched(shard, tmp_path, "cat\n")
    assert "4 pairs (66.7%) hold 4 queries" in capsys.readouterr().out
    table = pyarrow.table({"key": ["f", "a"], "caption": ["cat", "no"]})
    parquet.write_table(table, Path(shard).with_suffix(".parquet"))
    matched(shard, tmp_path, "cat\n")
    assert "1 pairs (16.7%) hold 1 queries" in capsys.readouterr().out


def test_weights_are_chances_and_an_epoch_has_as_many_as_a_draw(shard, tmp_path, capsys):
    balance = matched(shard, tmp_path, "cat\nmy\n")
    out = str(tmp_path / "s.parquet")
    assert main([*balance, "--weights", "--at-most", "1", "--out", out]) == 0
    said = capsys.readouterr().out
    assert "4 of 6 pairs" in said
    assert "an epoch has 2 of them, by their weights" in said
    (choice,) = read_selection(out).choices
    # "my" is in one pair, which stays; "cat" is in four.
    assert choice.rows().tolist() == [0, 1, 2, 4]
    assert choice.weighted().tolist() == [0.25, 1, 0.25, 0.25]
    assert len(train(shard, tmp_path, out).order) == 2


def test_select_multiplies_weights_and_keeps_captions_that_agree(shard, tmp_path, capsys):
    found = identify(shard)
    name = (shard, found.samples, found.mark)
    one = Selection(
        [choose(*name, [0, 1, 2, 3], weights=[2.0, 0.5, 1.0, 3.0], captions=[1, -1, 0, -1])], "one"
    )
    two = Selection([choose(*name, [1, 2, 4], weights=[0.5, 2.5, 4.0], captions=[1, 0, 1])], "two")
    plain = Selection([choose(*name, [2, 3, 4])], "plain")
    (both,) = combine([one, two])
    assert both.rows().tolist() == [1, 2]
    assert both.weighted().tolist() == [0.25, 2.5]
    assert both.chosen().tolist() == [1, 0]
    (either,) = combine([one, two], any_of=True)
    assert either.rows().tolist() == [0, 1, 2, 3, 4]
    assert either.weighted().tolist() == [2.0, 0.5, 2.5, 3.0, 4.0]
    assert either.chosen().tolist() == [1, 1, 0, -1, 1]
    (less,) = combine([one], [two])
    assert less.rows().tolist() == [0, 3]
    assert less.weighted().tolist() == [2.0, 3.0]
    assert less.chosen().tolist() == [1, -1]
    (again,) = combine([plain, one])
    assert again.rows().tolist() == [2, 3]
    assert again.weighted().tolist() == [1.0, 3.0]
    (bits,) = combine([plain, plain])
    assert not bits.weights
    assert not bits.captions
    other = Selection([choose(*name, [0, 5], captions=[0, 1])])
    # A sample that is not kept has no say.
    other_rows = combine([one, other], [Selection([choose(*name, [0])])])
    assert [each.kept for each in other_rows] == [0]
    with pytest.raises(ValueError, match=r"different captions of 1 samples of 0\.tar, such as"):
        combine([one, other], any_of=True)
    named = Selection([choose(*name, [5], captions=[1], captions_of="txt")])
    with pytest.raises(ValueError, match=r"different captions of 0\.tar: '' and 'txt'"):
        combine([one, named], any_of=True)
    for number, selection in enumerate((one, two)):
        write_selection(str(tmp_path / f"{number}.parquet"), selection.choices)
    out = str(tmp_path / "out.parquet")
    inputs = [str(tmp_path / f"{number}.parquet") for number in range(2)]
    assert main(["select", *inputs, "--out", out]) == 0
    assert read_selection(out).choices == [both]


def test_exact_compares_captions_of_tables(shard, tmp_path):
    import pyarrow
    from pyarrow import parquet

    same = make_shard(tmp_path / "1.tar", [(key, "x", png((0, 0, 0))) for key in "pqr"])
    columns = {"key": [*"pqr"], "caption": ["Word ", "word", "other"]}
    parquet.write_table(pyarrow.table(columns), tmp_path / "1.parquet")
    out = str(tmp_path / "once.parquet")
    options = ["--out", out, "--workers", "1", "--caption-cache", str(tmp_path / "joined")]
    assert main(["exact", same, *options, *TABLES]) == 0
    assert read_selection(out).choices[0].rows().tolist() == [0, 2]
    assert main(["exact", same, *options]) == 0
    assert np.array_equal(read_selection(out).choices[0].rows(), [0])
