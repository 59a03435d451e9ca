"""Tables of captions as people have them: every kind of text, and what is wrong in a file."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest

from clipfast.data.sidecar import Sidecar
from clipfast.data.sidecar.lookup import Lookup, digests
from clipfast.data.sidecar.rows import joined_rows, read_rows

pytestmark = pytest.mark.needs("pyarrow")

KEYS = ["a/b c", "ü", "0001.x", "Z" * 40, "e\u0301", "\u00e9"]


def captions_of(path: Path, **options) -> dict[str, list[str]]:
    """What a table says of each of its keys."""
    rows = read_rows(str(path), Sidecar((str(path),), **options))
    keys = [key.decode() for key in rows.keys.to_pylist()]
    found: dict[str, list[str]] = {key: [] for key in keys}
    for row, text in zip(rows.row.tolist(), rows.texts.to_pylist(), strict=True):
        found[keys[row]].append(text)
    return found


def write(path: Path, table) -> Path:
    from pyarrow import parquet

    parquet.write_table(table, path)
    return path


@pytest.mark.parametrize(
    "kind", ["string", "large_string", "string_view", "binary", "large_binary", "dictionary"]
)
def test_every_type_of_text_is_read(tmp_path, kind):
    import pyarrow as pa

    texts = [f'Caption, "{key}"\nof two lines' for key in KEYS]

    def column(values):
        made = pa.array(values, pa.string())
        if kind == "dictionary":
            return made.dictionary_encode()
        return made.cast(getattr(pa, kind)())

    table = pa.table({"key": column(KEYS), "caption": column(texts)})
    path = write(tmp_path / "t.parquet", table)
    assert captions_of(path) == {key: [text] for key, text in zip(KEYS, texts, strict=True)}


def test_lists_nulls_blanks_and_several_columns(tmp_path):
    import pyarrow as pa

    table = pa.table(
        {
            "key": ["a", "b", "c", "d", "a"],
            "one": pa.array([["x", None, " "], [], None, ["\u200b"], ["z"]], pa.list_(pa.string())),
            "two": ["y", "&nbsp;", "R&D", None, ""],
            "empty": pa.nulls(5),
        }
    )
    path = write(tmp_path / "t.parquet", table)
    found = captions_of(path, captions=("one", "two", "empty"))
    assert found == {"a": ["x", "y", "z"], "b": [], "c": ["R&D"], "d": []}


def test_keys_that_were_counted_are_texts_without_zeros(tmp_path):
    import pyarrow as pa

    table = pa.table({"key": pa.array([7, 12], pa.int32()), "caption": ["x", "y"]})
    assert captions_of(write(tmp_path / "t.parquet", table)) == {"7": ["x"], "12": ["y"]}


def test_row_groups_and_no_row_at_all(tmp_path):
    import pyarrow as pa
    from pyarrow import parquet

    table = pa.table({"key": [f"{i}" for i in range(1000)], "caption": ["x y"] * 1000})
    parquet.write_table(table, tmp_path / "t.parquet", row_group_size=7)
    assert len(captions_of(tmp_path / "t.parquet")) == 1000
    write(tmp_path / "none.parquet", table.slice(0, 0))
    (tmp_path / "none.csv").write_text("key,caption\n")
    for name in ("none.parquet", "none.csv"):
        rows = read_rows(str(tmp_path / name), Sidecar((name,)))
        assert len(rows.keys) == len(rows.texts) == 0
        assert Lookup(rows).find(rows.keys).tolist() == []


@pytest.mark.parametrize(("separator", "ending"), itertools.product(",\t;|", (b"\n", b"\r\n")))
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_csv_of_any_separator_line_end_and_mark(tmp_path, separator, ending, mark):
    lines = [
        ["other", "caption", "key"],
        ["", f'"a ""word""{separator} and more"', "0001"],
        ["1", "NULL", "0002"],
        ["", '"two\nlines, of it"', "0003"],
        ["", "NA", "0004"],
        ["", "", "0005"],
    ]
    data = ending.join(separator.join(line).encode() for line in lines)
    path = tmp_path / "t.csv"
    path.write_bytes(mark + data)
    assert captions_of(path) == {
        "0001": [f'a "word"{separator} and more'],
        "0002": ["NULL"],
        "0003": ["two\nlines, of it"],
        "0004": ["NA"],
        "0005": [],
    }


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "is empty"),
        (b"id,text\n1,x\n", "has no column 'key'; its first line has 'id', 'text'"),
        (b"key,caption,key\n1,x,2\n", "has several columns 'key'"),
        (b"key,caption\n1,x\n2,y,z\n", "Expected 2 columns, got 3"),
        (b"key,caption\n1,\xff\xfe\n", "invalid UTF8"),
        ("key,caption\n1,x\n".encode("utf-16"), "is UTF-16: save it as UTF-8"),
        (b"key,caption\n,x\n", r"1 row\(s\) have no key, such as row 1"),
        (b'key,caption\n01,"open\n02,of more\n03,"last\n', "begins like a row"),
        (b'caption,key\n"open,01\nmore,02\nlast",03\n', "begins like a row"),
        (b"key,caption,shard\n1,x,\n2,y,0\n", None),
    ],
)
def test_csv_that_is_odd_is_refused(tmp_path, data, why):
    path = tmp_path / "t.csv"
    path.write_bytes(data)
    if why is None:
        assert list(captions_of(path)) == ["\x001", "0\x002"]
        return
    with pytest.raises(ValueError, match=why) as caught:
        captions_of(path)
    assert str(path) in str(caught.value)


def test_parquet_that_is_odd_is_refused(tmp_path):
    import pyarrow as pa

    path = tmp_path / "t.parquet"
    for columns, why in (
        ({"caption": ["x"]}, "it has no column 'key'; it has 'caption'"),
        ({"key": [0.5], "caption": ["x"]}, "column 'of keys' holds double"),
        ({"key": ["a"], "caption": [1]}, "column 'caption' holds int64; expected texts"),
        ({"key": ["a", None], "caption": ["x", "y"]}, r"1 row\(s\) have no key, such as row 2"),
        ({"key": ["a"], "caption": [b"\xff"]}, "column 'caption' holds bytes that are no UTF-8"),
        ({"key": ["a"], "caption": [{"x": 1}]}, "expected texts"),
        ({"key": ["a"], "caption": ["x"], "shard": [3]}, "--data.caption-shard ''"),
        ({"key": ["a"], "caption": ["x"], "shard": [None]}, r"1 row\(s\) have no shard"),
    ):
        write(path, pa.table(columns))
        with pytest.raises(ValueError, match=why) as caught:
            captions_of(path)
        assert str(path) in str(caught.value)
    for data in (b"", b"PAR1", b"no Parquet", path.read_bytes()[:-20]):
        path.write_bytes(data)
        with pytest.raises(ValueError, match=r"table of captions .*t\.parquet"):
            captions_of(path)


def test_what_a_person_says_is_checked(tmp_path):
    for options, why in (
        ({"files": ()}, "expected at least one of files"),
        ({"files": ("a.parquet", "{shard}.csv")}, "some are tables of a shard each"),
        ({"files": ("a.parquet",), "captions": ("key",)}, "column 'key' is named twice"),
        ({"files": ("a.parquet",), "key": ""}, "has no name"),
        ({"files": ("a.parquet",), "missing": "none"}, "missing must be"),
        ({"files": "a.parquet"}, "files must be a tuple"),
    ):
        with pytest.raises(ValueError, match=why):
            Sidecar(**options)
    (tmp_path / "b.txt").touch()
    for pattern, kind, why in (
        (f"{tmp_path}/a.parquet", FileNotFoundError, "is not there"),
        (f"{tmp_path}/*.csv", FileNotFoundError, "none of 0 files"),
        (f"{tmp_path}/", FileNotFoundError, "none of 1 files"),
        (f"{tmp_path}/b.txt", ValueError, "expected the ending"),
    ):
        with pytest.raises(kind, match=why):
            Sidecar((pattern,)).files_of()
    for name in ("2.csv", "1.csv", "10.parquet"):
        (tmp_path / name).touch()
    names = [Path(path).name for path in Sidecar((f"{tmp_path}/{{2,1}}.csv",)).files_of()]
    assert names == ["2.csv", "1.csv"]
    names = [Path(path).name for path in Sidecar((str(tmp_path),)).files_of()]
    assert names == ["1.csv", "10.parquet", "2.csv"]


def test_keys_are_found_by_all_their_bytes(tmp_path):
    import pyarrow as pa

    draw = np.random.default_rng(0)
    keys = [bytes(draw.integers(0, 256, size).astype(np.uint8)) for size in range(40)]
    keys += [b"x" * size for size in range(1, 40)] + [b"x" * size + b"\0" for size in range(20)]
    keys = list(dict.fromkeys(keys))
    array = pa.array(keys, pa.large_binary())
    numbers = digests(array)
    assert len(np.unique(numbers)) == len(keys)
    assert (digests(array.slice(7)) == numbers[7:]).all()
    assert (digests(array, 1) != numbers).all()


def test_two_keys_of_one_number_are_told_apart(monkeypatch):
    import pyarrow as pa

    from clipfast.data.sidecar import lookup
    from clipfast.data.sidecar.rows import Rows

    real = lookup.digests

    def weak(keys, seed=0):
        return real(keys, seed) % np.uint64(11 if seed < 2 else 2**60)

    monkeypatch.setattr(lookup, "digests", weak)
    keys = pa.array([b"a", b"b", b"c", b"d", b"a", b"e", b"f", b"g"], pa.large_binary())
    texts = pa.array([f"{i}" for i in range(8)], pa.large_string())
    found = Lookup(joined_rows([Rows(keys, np.arange(8), texts, False)]))
    asked = pa.array([b"d", b"h", b"a", b"z"], pa.large_binary())
    places = found.find(asked)
    counts, captions = found.captions(places)
    assert counts.tolist() == [1, 0, 2, 0]
    assert captions.to_pylist() == ["3", "0", "4"]
