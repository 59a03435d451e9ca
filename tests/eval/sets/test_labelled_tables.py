"""Tables of image paths and labels; further columns are attributes."""

import csv
import sys

import numpy as np
import pytest
from PIL import Image

from clipfast.eval.sets import open_captions, open_set
from clipfast.eval.sets.labelledtable import as_column

ROWS = [
    ("path", "label", "age", "group", "lat", "code"),
    ("img/a.png", "dog", "31", "x", "1.5", "007"),
    ("img/b.png", "cat", "7", "", "", "012"),
    ("img/c.png", "dog", "65", "y", "-3", "100"),
]


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "img").mkdir()
    for value, name in enumerate("abc"):
        Image.new("RGB", (2, 2), (value, 0, 0)).save(tmp_path / "img" / f"{name}.png")
    return tmp_path


def write(path, rows):
    with path.open("w", newline="") as file:
        csv.writer(file, delimiter="\t" if path.suffix == ".tsv" else ",").writerows(rows)
    return str(path)


@pytest.mark.parametrize("suffix", [".csv", ".tsv"])
def test_open_set_reads_a_table_of_words(folder, suffix):
    opened = open_set(write(folder / f"faces[1]{suffix}", ROWS))
    assert (opened.name, opened.classnames) == ("faces[1]", ("cat", "dog"))
    assert opened.labels.tolist() == [1, 0, 1]
    assert opened.encoded(2) == (folder / "img" / "c.png").read_bytes()
    assert list(opened.attributes) == ["age", "group", "lat", "code"]
    assert opened.attributes["age"].tolist() == [31, 7, 65]
    assert opened.attributes["group"].tolist() == ["x", "", "y"]
    np.testing.assert_array_equal(opened.attributes["lat"], [1.5, np.nan, -3])
    assert opened.attributes["code"].tolist() == ["007", "012", "100"]


def test_open_set_reads_a_table_of_numbers(folder):
    rows = [("image", "class"), ("img/a.png", 9), ("img/c.png", 0)]
    table = write(folder / "x.csv", rows)
    opened = open_set(f"cifar10:{table}")
    assert (opened.labels.tolist(), opened.classnames[9]) == ([9, 0], "truck")
    with pytest.raises(ValueError, match="tells no class names"):
        open_set(table)
    (folder / "classnames.txt").write_text("\n".join("abc"))
    with pytest.raises(ValueError, match="1 labels are outside 0 to 2, such as 9 of image 0"):
        open_set(table)


def test_open_set_reads_the_rows_of_a_split(folder):
    rows = [("path", "label", "split"), ("img/a.png", "x", "train"), ("img/b.png", "y", "test")]
    table = write(folder / "x.csv", rows)
    opened = open_set(table)
    assert (opened.classnames, dict(opened.attributes)) == (("x", "y"), {})
    # A label means the same in all splits.
    assert opened.labels.tolist() == [1]
    with pytest.raises(ValueError, match="no row of split 'val'; its splits are test, train"):
        open_set(table, split="val")


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([("path", "label"), ("img/a.png", "")], "line 2: column 'label' is empty"),
        ([("path", "label"), ("img/a.png", "1.0")], r"labels such as '1\.0' are no whole numbers"),
        ([("path", "label"), ("img/z.png", "x")], r"line 2: there is no file .*z\.png'; 1 of 1"),
        ([("path", "name"), ("img/a.png", "x")], "no column for the label: call one label, class"),
        ([("path", "label"), ("img/a.png", "x", "y")], "row has 3 cells, and the first row 2"),
        ([("path", "label")], "no class names|has no image"),
    ],
)
def test_open_set_names_bad_rows(folder, rows, message):
    with pytest.raises(ValueError, match=message):
        open_set(write(folder / "x.csv", rows))


def test_open_set_names_files_of_other_kinds(folder):
    (folder / "x.zip").write_bytes(b"PK\x03\x04")
    with pytest.raises(ValueError, match="is no data set that is read here: give a folder"):
        open_set(str(folder / "x.zip"))
    (folder / "x.csv").write_bytes(b"PK\x03\x04")
    with pytest.raises(ValueError, match="an Excel workbook"):
        open_set(str(folder / "x.csv"))
    (folder / "y.csv").write_bytes(b"path,label\nimg/a.png,\xff\n")
    with pytest.raises(ValueError, match="line 2: row is not UTF-8"):
        open_set(str(folder / "y.csv"))


@pytest.mark.parametrize(
    ("cells", "kind", "values"),
    [
        (["1", "-2", "0"], np.int64, [1, -2, 0]),
        ([3, 4], np.int64, [3, 4]),
        (["1", "2.5"], np.float64, [1.0, 2.5]),
        (["", None], np.str_, ["", ""]),
        (["01", "2"], np.str_, ["01", "2"]),
        ([None, "b"], np.str_, ["", "b"]),
    ],
)
def test_as_column_tells_numbers_from_texts(cells, kind, values):
    column = as_column(cells)
    assert np.issubdtype(column.dtype, kind)
    assert column.tolist() == values


@pytest.mark.needs("pyarrow")
def test_open_set_reads_parquet(folder):
    import pyarrow as pa
    from pyarrow import parquet

    columns = {
        "path": ["img/a.png", "img/b.png"],
        "label": [1, 0],
        "age": [31, None],
        "caption": [["x", "y"], ["z"]],
    }
    parquet.write_table(pa.table(columns), folder / "x.parquet")
    (folder / "classnames.txt").write_text("cat\ndog\n")
    opened = open_set(str(folder / "x.parquet"))
    assert opened.labels.tolist() == [1, 0]
    np.testing.assert_array_equal(opened.attributes["age"], [31, np.nan])
    captions = open_captions(str(folder / "x.parquet"))
    assert (list(captions.captions), captions.image_of.tolist()) == (["x", "y", "z"], [0, 0, 1])
    parquet.write_table(pa.table({"image": [b"x"], "label": [0]}), folder / "z.parquet")
    with pytest.raises(ValueError, match="column 'image' holds no text; write paths"):
        open_set(folder / "z.parquet")
    (folder / "y.parquet").write_bytes(b"none")
    with pytest.raises(ValueError, match="is no Parquet file"):
        open_set(str(folder / "y.parquet"))


def test_open_set_says_what_parquet_needs(folder, monkeypatch):
    (folder / "x.parquet").write_bytes(b"PAR1")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ValueError, match="needs pyarrow to be read: pip install pyarrow"):
        open_set(str(folder / "x.parquet"))
