"""Tables to pack: a pair is right, or its row is named with its line and the reason."""

import codecs
import csv
import io
import json
import re
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from clipfast.data.packitem import Item, Listing, TableOptions
from clipfast.data.packlist import list_items


def listed(folder: Path, name: str, text: str | bytes, **options) -> Listing:
    data = text.encode() if isinstance(text, str) else text
    (folder / name).write_bytes(data)
    return list_items(str(folder / name), options=TableOptions(**options))


def pairs(listing: Listing) -> list[tuple[str, str]]:
    assert listing.total == len(listing.items) + len(listing.rejected)
    return [(Path(item.image).name, (item.caption or b"").decode()) for item in listing.items]


def reasons(listing: Listing) -> dict[str, str]:
    """By place: file and line."""
    return {source.split()[0].split(":")[1]: reason for source, reason in listing.rejected}


OBJECTS = [{"file": "0.jpg", "caption": "a"}, {"file": "1.jpg", "caption": "b"}]
BYTES = "names .* bytes that are not of the table's encoding; name .* --encoding cp1252$"
LOWER = "line {} holds no names of columns, and line {} does; it must be the first$"
ARRAY = "is a JSON array, not JSON lines; write one object a line"
SPREAD = "is JSON with objects over several lines, not JSON lines; write one object a line"


@pytest.mark.parametrize(
    ("name", "text", "options", "message"),
    [
        ("x.csv", "a,b\n1,2\n", {}, "none of the columns file, .* its columns: 'a', 'b'"),
        ("x.csv", "file,b\n1,2\n", {}, "for the caption.*--caption-column"),
        ("x.csv", "file,b\n1,2\n", {"caption_column": "c"}, "no column 'c' for the caption"),
        ("x.csv", "url;alt\n1;2\n", {}, "its columns: 'url', 'alt'.*cut at ';'"),
        ("x.csv", "url\talt\n1\t2\n", {}, "its columns: 'url', 'alt'.*cut at tab"),
        ("x.csv", "file,caption\n", {}, "holds no row"),
        ("x.csv", "", {}, "holds no row"),
        ("x.jsonl", "\n\n", {}, "holds no row"),
        ("x.jsonl", '{"a": 1}\n{"a": 2}\n', {}, "none of the columns file"),
        ("x.jsonl", json.dumps(OBJECTS), {}, ARRAY),
        ("x.jsonl", "\ufeff\n" + json.dumps(OBJECTS, indent=2), {}, ARRAY),
        ("x.jsonl", "[\n{},\n{}\n]\n".format(*map(json.dumps, OBJECTS)), {}, ARRAY),
        ("x.jsonl", "[{},\n{}]\n".format(*map(json.dumps, OBJECTS)), {}, ARRAY),
        ("x.jsonl", "[{}\n,{}]\n".format(*map(json.dumps, OBJECTS)), {}, ARRAY),
        ("x.jsonl", json.dumps({"images": OBJECTS}, indent=1), {}, SPREAD),
        ("x.jsonl", '{"images": [\n' + json.dumps(OBJECTS[0]) + "\n]}", {}, SPREAD),
        ("x.jsonl", "\n".join(json.dumps(each, indent=2) for each in OBJECTS), {}, SPREAD),
        ("x.jsonl", json.dumps(OBJECTS[0]).replace('"cap', '\n\n "cap'), {}, SPREAD),
        ("x.csv", b"\x80\x81\x82\n", {}, BYTES),
        ("x.csv", b"file,\xe9\n0.jpg,a\n", {}, BYTES),
        ("x.csv", b"file,\xe9\n0.jpg,a\n", {"separator": ","}, BYTES),
        ("x.csv", b"file,\xe9\n0.jpg,a\n", {"caption_column": "é"}, BYTES),
        ("x.csv", "画像,説明\n0.jpg,a\n".encode("cp932"), {}, BYTES),
        ("x.csv", "#comment\nfile,caption\n0.jpg,a\n", {}, LOWER.format(1, 2)),
        ("x.csv", "# by a, b\n\nfile\tcaption\n0.jpg\ta\n", {}, LOWER.format(1, 3)),
        ("x.csv", "sep=;\nCats\nfile;text\n0.jpg;a\n", {}, LOWER.format(2, 3)),
        (
            "x.csv",
            "Cats\nurl|text\n0|a\n",
            {"image_column": "url", "separator": "|"},
            LOWER.format(1, 2),
        ),
        ("x.csv", "#comment\n0.jpg,a\n", {}, "'#comment'.*the first row must hold names"),
        (
            "x.csv",
            "file,caption,caption\n0.jpg,a,b\n",
            {},
            "2 columns 'caption' for the caption: .*; its columns: 'file', 'caption', 'caption'$",
        ),
        ("x.csv", "0.jpg,a cat\n1.jpg,a dog\n", {}, "the first row must hold names"),
        ("x.csv", "file,caption,Caption\n1,2,3\n", {}, "2 columns 'caption' for the caption"),
        ("x.csv", "file,caption;caption\n", {"separator": ";"}, "its columns: 'file,caption'"),
        ("x.csv", "'file','caption'\n", {}, "--quote .* reads single quotes"),
        ("x.csv", "画像,file,caption\n".encode("utf-16-le"), {}, "many NUL bytes.*--encoding"),
        ("x.csv", bytes(99), {}, "many NUL bytes"),
        ("x.csv", "<!DOCTYPE html>", {}, "is a web page"),
        ("x.csv", "x" * 999, {}, r"columns: 'x{40}'\. Name"),
        ("x.csv", 'file,"caption\n1.jpg,2\n', {}, "names of the columns: row has a"),
        ("x.csv", "file,text\n1,2\n", {"encoding": "utf-99"}, "no encoding that Python reads"),
        ("x.csv", "file,text\n1,2\n", {"encoding": "base64"}, "no encoding that Python reads"),
        ("x.csv", b"PK\x03\x04....", {}, "Excel workbook; save it as CSV"),
        ("x.tsv", b"\x1f\x8b\x08....", {}, "compressed .gzip.; decompress"),
        ("x.csv", b"version https://git-lfs.github.com/spec/v1\n", {}, "git lfs pull"),
        ("x.csv", "file,caption\n", {"separator": "tab", "quote": "\t"}, "both --separator and"),
        ("x.csv", "file,caption\n", {"separator": '"'}, "both --separator and"),
        ("x.csv", 'sep="\nfile,caption\n', {}, "both --separator and"),
        ("x.jsonl", "{}", {"separator": ";"}, "--separator and --quote belong to"),
    ],
)
def test_list_items_refuses_a_table(tmp_path, name, text, options, message):
    with pytest.raises(ValueError, match=message):
        listed(tmp_path, name, text, **options)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("x.parquet", "write its columns as .csv"),
        ("x.xlsx", "save the sheet as CSV"),
        ("x.tar", "clipfast.data.index"),
        ("x.csv.gz", "decompress"),
        ("x.json", "one object a line"),
        ("x", "rename the table"),
    ],
)
def test_list_items_says_what_to_do_with_another_file(tmp_path, name, message):
    with pytest.raises(ValueError, match=f"neither a folder nor a .csv.*{message}"):
        listed(tmp_path, name, "")


@pytest.mark.parametrize(
    "options",
    [{"separator": ""}, {"separator": "||"}, {"quote": "\n"}, {"quote": "\\t"}, {"quote": ""}],
)
def test_table_options_refuse_what_cannot_separate(options):
    with pytest.raises(ValueError, match=r"--(separator|quote)"):
        TableOptions(**options)


def test_list_items_reads_other_columns_and_another_image_folder(tmp_path):
    (tmp_path / "x.csv").write_text("url,alt\np.jpg,words\n")
    options = TableOptions(image_column="url", caption_column="ALT ")
    listing = list_items(str(tmp_path / "x.csv"), str(tmp_path), options)
    assert listing.items == [Item("x.csv:2 p.jpg", str(tmp_path / "p.jpg"), b"words")]
    with pytest.raises(FileNotFoundError, match="is no folder"):
        list_items(str(tmp_path / "x.csv"), "/nowhere/x", options)


ROWS = [
    ("0.jpg", "a cat"),
    ("1.jpg", 'für, "élan"; | and \''),
    ("2.jpg", "line\nend"),
    ("3.jpg", "写"),
]


def table(separator: str, end: str) -> str:
    text = io.StringIO(newline="")
    # Python 3.11 leaves line ends bare where they are not the table's.
    quoting = csv.QUOTE_ALL if end == "\r" else csv.QUOTE_MINIMAL
    writer = csv.writer(text, delimiter=separator, lineterminator=end, quoting=quoting)
    writer.writerows([(" File", "CAPTION "), *ROWS])
    return text.getvalue()


@pytest.mark.parametrize("name", ["t.csv", "t.tsv", "t.CSV"])
@pytest.mark.parametrize("separator", [",", "\t", ";", "|"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_separator_and_line_ends_are_told_by_the_table(tmp_path, name, separator, end):
    listing = listed(tmp_path, name, table(separator, end) + 2 * end)
    assert pairs(listing) == ROWS


@pytest.mark.parametrize(
    "encoding",
    ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "utf-32-be"],
)
@pytest.mark.parametrize("mark", [b"", codecs.BOM_UTF16_BE])
def test_encoding_is_told_by_the_first_bytes(tmp_path, encoding, mark):
    if mark and encoding != "utf-16-be":
        encoding, mark = encoding, b""
    listing = listed(tmp_path, "t.tsv", mark + table("\t", "\r\n").encode(encoding))
    assert pairs(listing) == ROWS
    lines = "".join(json.dumps(dict(file=i, caption=c), ensure_ascii=False) + "\n" for i, c in ROWS)
    assert pairs(listed(tmp_path, "t.jsonl", lines.encode(encoding))) == ROWS


def test_bytes_of_another_encoding_are_named_and_read_when_it_is_given(tmp_path):
    data = "file,caption\n0.jpg,plain\n1.jpg,é\n2.jpg,plain too\n".encode("cp1252")
    listing = listed(tmp_path, "t.csv", data)
    assert pairs(listing) == [("0.jpg", "plain"), ("2.jpg", "plain too")]
    assert "not UTF-8; name the encoding" in reasons(listing)["3"]
    listing = listed(tmp_path, "t.csv", data, encoding="cp1252")
    assert pairs(listing) == [("0.jpg", "plain"), ("1.jpg", "é"), ("2.jpg", "plain too")]
    listing = listed(tmp_path, "t.csv", data + b"4.jpg,\x81\n", encoding="cp1252")
    assert "not CP1252" in reasons(listing)["5"]
    cut = "file,caption\n0.jpg,a\n1.jpg,b".encode("utf-16")[:-1]
    listing = listed(tmp_path, "t.csv", cut)
    assert pairs(listing) == [("0.jpg", "a")]
    assert "not UTF-16" in reasons(listing)["3"]


@pytest.mark.parametrize(
    ("text", "right", "named"),
    [
        # A quote that opens and never closes, or closes in another row.
        ('0.jpg\t"a\n1.jpg\tb\n2.jpg\tc', "1 2", {2: "does not close"}),
        ('0.jpg\ta\n1.jpg\t"b\n2.jpg\tc\n3.jpg\td"\n4.jpg\te', "0 2 4",
         {3: "does not close", 5: "nothing opens"}),
        ('0.jpg\ta\n1.jpg\t"b\n2.jpg\tc\n3.jpg\td 5"\n4.jpg\te', "0 2 4",
         {3: "does not close", 5: "may close"}),
        ('0.jpg\t"a\n"1.jpg"\t"b"\n2.jpg\tc', "1 2", {2: "does not close"}),
        ('0.jpg\t"a"b\n1.jpg\tb', "1", {2: "does not close"}),
        ('"0.jpg\ta\n1.jpg\tb', "1", {2: "does not close"}),
        ('0.jpg\ta "b" c\n1.jpg\ta 12"\n2.jpg\tb"\n3.jpg\ta "b"', "0 1 3", {4: "nothing opens"}),
        ('"0.jpg"\t66"\n1.jpg\tb', "1", {2: "nothing opens"}),
        # A quote that swallows the rest of a line, or the header's columns.
        ('0.jpg\t"a\n1.jpg"\n2.jpg\tc', "2", {2: "does not close", 3: "nothing opens"}),
        ('0.jpg\ta\n"\n1.jpg\tb', "1", {2: "line 3 is its rest", 3: "does not close"}),
        # Line ends that nobody quoted.
        ("0.jpg\ta\ncut\n1.jpg\tb", "1", {2: "line 3 is its rest", 3: "1 columns"}),
        ("0.jpg\ta\n \ncut\n1.jpg\tb", "1", {2: "line 4 is its rest", 3: "1 col", 4: "1 col"}),
        ('0.jpg\ta\n""\n1.jpg\tb', "1", {2: "line 3 is its rest", 3: "1 columns"}),
        ("0.jpg\ta\nand \tmore\n1.jpg\tb", "and 1", {2: "line 3 is its rest"}),
        ("0.jpg\ta\nsee http://x/2.jpg\tokay\n1.jpg\tb", "1",
         {2: "line 3 is its rest", 3: "words before a URL"}),
        ("0.jpg\ta\nfrom s3://x/y\tokay\n1 2.jpg\tb\na//b 3.jpg\tc", "1 2 b 3",
         {2: "line 3 is its rest", 3: "words before a URL"}),
        ("see http://x/2.jpg\ta\n1.jpg\tb", "1", {2: "words before a URL"}),
        ('0.jpg\t"a\nsee http://x/2.jpg\tokay"\n1.jpg\tb', "0 1", {}),
        ("0.jpg\ta\rcut\n1.jpg\tb", "1", {2: "ends in CR", 3: "1 columns"}),
        ("0.jpg\ta\r1.jpg\tb\n2.jpg\tc", "2", {2: "ends in CR", 3: "ends in CR"}),
        # Cells too few or too many; a short row that begins like one cuts no other.
        ("0.jpg\ta\tb\n1.jpg\n2.jpg\tc", "2", {2: "3 columns", 3: "1 columns"}),
        ("0.jpg\ta\n\tb\n\t\n2.jpg\tc", "2", {2: "is its rest", 3: "no 'file'", 4: "no 'file'"}),
        # What another dialect writes.
        ('0.jpg\ta \\"b\\"\n1.jpg\tb', "1", {2: "has a \\\\\""}),
        ('0.jpg\t"\\"\n"1.jpg\tb\n2.jpg\tc', "2", {2: "has a \\\"", 3: "does not close"}),
        ('0.jpg\t "a"\n1.jpg\tb', "1", {2: "space before"}),
        ("0.jpg\t'it''s'\n1.jpg\t'b'", "1", {2: "single quotes"}),
        ("0.jpg\ta\\\n1.jpg\tb\n2.jpg\t\"c\\\n\"", "1 2", {2: "ends in a \\"}),
        # Joined tables.
        ("0.jpg\ta\n\ufeffFILE \tcaption\n1.jpg\tb", "0 1", {3: "repeats the names"}),
        ("0.jpg\ta\nfile\tcaption\n1.jpg\tb\ncaption\tfile", "0 1", {3: "repeats", 5: "repeats"}),
        ("0.jpg\ta\0b\n1\0.jpg\tb\n2.jpg\tc", "2", {2: "NUL", 3: "NUL"}),
        ("http://x.org/0.jpg\ta\n1.jpg\tb", "1", {2: "is a URL"}),
    ],
)  # fmt: skip
@pytest.mark.parametrize("end", ["", "\n"])
def test_rows_that_may_be_wrong_are_named(tmp_path, text, right, named, end):
    listing = listed(tmp_path, "t.tsv", "file\tcaption\n" + text + end)
    assert " ".join(image.removesuffix(".jpg") for image, _ in pairs(listing)) == right.strip()
    told = reasons(listing)
    assert [int(line) for line in told] == sorted(named)
    for line, reason in named.items():
        assert reason.replace("\\\\", "\\") in told[str(line)]


def test_a_caption_in_front_is_spoiled_by_the_row_before(tmp_path):
    listing = listed(tmp_path, "t.csv", "caption,file\na,0.jpg\nb\ncut,1.jpg\nc,2.jpg\n")
    assert pairs(listing) == [("0.jpg", "a"), ("2.jpg", "c")]
    assert "line 3 is its beginning" in reasons(listing)["4"]
    listing = listed(tmp_path, "t.csv", 'caption,file\n"a,0.jpg\nb,1.jpg\nc",2.jpg\nd,3.jpg\n')
    assert pairs(listing) == [("1.jpg", "b"), ("3.jpg", "d")]


def test_quoted_cells_of_a_spreadsheet_may_hold_lines_and_rows_are_counted(tmp_path):
    text = 'sep=;\nid;file;caption\n1;0.jpg;"two\nlines; ""so"""\n2;1.jpg;\n3;"";\n4;2.jpg;b\n'
    listing = listed(tmp_path, "t.csv", text)
    assert pairs(listing) == [("0.jpg", 'two\nlines; "so"'), ("1.jpg", ""), ("2.jpg", "b")]
    assert listing.rejected == [("t.csv:6 (row 4)", "row has no 'file'")]


def test_a_quote_that_is_a_letter_or_another_character(tmp_path):
    text = "file,caption\n0.jpg,\"a\n1.jpg,'b, c'\n"
    assert pairs(listed(tmp_path, "t.csv", text, quote="none")) == [("0.jpg", '"a')]
    assert pairs(listed(tmp_path, "t.csv", text, quote="'")) == [("0.jpg", '"a'), ("1.jpg", "b, c")]


def test_images_without_extension_are_known_by_their_like_or_by_being_there(tmp_path):
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "seven").write_bytes(b"x")
    text = "file,caption\nd/001,a\nd/002,b\nd/seven,c\nd/003,d\nother,words\n"
    listing = listed(tmp_path, "t.csv", text)
    assert [caption for _, caption in pairs(listing)] == ["a", "b", "c", "words"]
    assert "line 6 is its rest" in reasons(listing)["5"]
    text = 'file,caption\nd/001,"a\nd/002,b\nd/seven,c"\n'
    assert [caption for _, caption in pairs(listed(tmp_path, "t.csv", text))] == ["b"]


def test_very_long_cells_are_read_and_endless_ones_named(tmp_path, monkeypatch):
    long = "x, " * 400_000
    listing = listed(tmp_path, "t.csv", f'file,caption\n0.jpg,"{long}"\n1.jpg,b\n')
    assert pairs(listing) == [("0.jpg", long), ("1.jpg", "b")]
    monkeypatch.setattr("clipfast.data.tablerows._LONGEST", 1000)
    listing = listed(tmp_path, "t.csv", f'file,caption\n0.jpg,"{long}"\n1.jpg,b\n')
    assert pairs(listing) == [("1.jpg", "b")]
    assert "more than 1,000 characters" in reasons(listing)["2"]


@pytest.mark.parametrize(
    ("caption", "reason"),
    [
        ("5", "a number, not a text"),
        ("true", "true or false, not a text"),
        ('{"en": "x"}', "an object, not a text"),
        ("null", "no 'caption'"),
        ("[]", "an empty list"),
        ("[5]", "a number, not a text"),
        ('["a", "b"]', "a list of 2: --caption-lists first"),
        ("\"['a', 'b']\"", "a list of 2: --caption-lists first"),
        ("\"['a' 'b']\"", "looks like a list"),
        ('"a\\ud83d"', r"'caption' holds half of a surrogate pair, written as \ud800 to \udfff"),
        ('"\\udcff"', "half of a surrogate pair"),
        ('["\\ude00\\ud83d"]', "half of a surrogate pair"),
        ('"x", "a": "\\ud83d", "file": "\\ud83d.jpg"', "'file' stands twice"),
        ('"x", "file": "1.jpg"', "'file' stands twice"),
        ("1" * 5000, "not JSON"),
        ("[" * 100_000, "nested too deep"),
    ],
)
def test_json_values_that_are_no_text_are_named(tmp_path, caption, reason):
    text = f'{{"file": "0.jpg", "caption": {caption}}}\n{{"file": "1.jpg", "caption": "b"}}\n'
    listing = listed(tmp_path, "t.jsonl", text)
    assert pairs(listing) == [("1.jpg", "b")]
    assert reason in reasons(listing)["1"]


def test_half_of_a_surrogate_pair_in_a_path_of_json_is_named(tmp_path):
    text = r"""{"file": "\ud83d.jpg", "caption": "a"}
{"file": "\ud83d\ude00.jpg", "caption": "\ud83d\ude00", "note": "\ud83d"}
"""
    listing = listed(tmp_path, "t.jsonl", text)
    assert pairs(listing) == [("😀.jpg", "😀")]
    assert "'file' holds half of a surrogate pair" in reasons(listing)["1"]


def test_json_rows_before_the_columns_are_known_are_named(tmp_path):
    text = 'oops\n{"a": 1}\n["x"]\n{"Image ": "0.jpg", "Text": "a"}\n{"Image ": 7, "Text": "b"}\n'
    listing = listed(tmp_path, "t.ndjson", text)
    assert pairs(listing) == [("0.jpg", "a")]
    assert list(reasons(listing)) == ["1", "2", "3", "5"]
    assert "'Image ' is a number, not a path" in reasons(listing)["5"]
    assert listed(tmp_path, "t.jsonl", "oops\n").total == 1


@pytest.mark.parametrize("cut", ['{"file": "0.jpg",', '{"file": "0.jpg", "ca', '["x"]', "}"])
def test_a_cut_first_row_of_json_costs_itself_alone(tmp_path, cut):
    listing = listed(tmp_path, "t.jsonl", cut + '\n{"file": "1.jpg", "caption": "b"}\n')
    assert pairs(listing) == [("1.jpg", "b")]
    assert list(reasons(listing)) == ["1"]


def test_caption_lists_pack_the_first_or_each(tmp_path):
    text = '{"file": "0.jpg", "caption": ["a", 5, "b"]}\n{"file": "1.jpg", "caption": "c"}\n'
    assert "a list of 3" in reasons(listed(tmp_path, "t.jsonl", text))["1"]
    one = '{"file": "0.jpg", "caption": ["a"]}'
    assert pairs(listed(tmp_path, "t.jsonl", one)) == [("0.jpg", "a")]
    listing = listed(tmp_path, "t.jsonl", text, caption_lists="first")
    assert pairs(listing) == [("0.jpg", "a"), ("1.jpg", "c")]
    listing = listed(tmp_path, "t.jsonl", text, caption_lists="each")
    assert pairs(listing) == [("0.jpg", "a"), ("0.jpg", "b"), ("1.jpg", "c")]
    assert listing.rejected == [("t.jsonl:1[2] 0.jpg", "caption is a number, not a text")]
    assert listing.total == 4
    text = 'file,caption\n0.jpg,"[\'a, b\', ""it\'s""]"\n'
    listing = listed(tmp_path, "t.csv", text, caption_lists="each")
    assert pairs(listing) == [("0.jpg", "a, b"), ("0.jpg", "it's")]


def one_cell(folder: Path, caption: str, **options) -> Listing:
    """A table of one row, with the cell as Python's csv writes it."""
    text = io.StringIO(newline="")
    csv.writer(text).writerows([("file", "caption"), ("0.jpg", caption)])
    return listed(folder, "t.csv", text.getvalue(), **options)


@pytest.mark.parametrize(
    ("cell", "reason", "each"),
    [
        ("('a', 'b')", "a list of 2", ["a", "b"]),
        ("('a',)", "a list of 1", ["a"]),
        ("[u'x', u'y']", "a list of 2", ["x", "y"]),
        ("['it\\'s', 'b']", "a list of 2", ["it's", "b"]),
        ("array(['x', 'y'], dtype=object)", "a list of 2", ["x", "y"]),
        ("[np.str_('a'), np.str_('b')]", "a list of 2", ["a", "b"]),
        ("{'b', 'a'}", "a list of 2", ["b", "a"]),
        ('["a", null]', "a list of 2", ["a"]),
        ("['a', nan]", "a list of 2", ["a"]),
        ("[1, 2]", "a list of 2", []),
        ("[]", "an empty list", []),
        ("()", "an empty list", []),
        ("[None]", "no 'caption'", []),
        ("[nan]", "a number", []),
        ("[5]", "a number", []),
        ("{}", "an object", []),
        ("{'en': 'a'}", "an object", []),
        ("[['a', 'b'], ['c']]", "a list of 2", []),
        ("['a', 'b", "looks like a list", []),
        ("['a", "looks like a list", []),
        ("[['a', 'b'", "looks like a list", []),
        ("('a', 'b", "looks like a list", []),
        ("{'en': 'a", "looks like a list", []),
        ("['a'\n 'b']", "looks like a list", []),
        ("['\\d', 'b']", "looks like a list", []),
        ("array(['x', ..., 'y'], dtype=object)", "looks like a list", []),
        ("[np.str_('a'), np.s", "looks like a list", []),
    ],
)
def test_a_cell_that_spells_a_list_is_judged_as_the_list(tmp_path, cell, reason, each):
    listing = one_cell(tmp_path, cell)
    assert not listing.items
    assert reason in reasons(listing)["2"]
    listing = one_cell(tmp_path, cell, caption_lists="each")
    assert [caption for _, caption in pairs(listing)] == each


@pytest.mark.parametrize(
    "caption",
    [
        "[cat] on a mat",
        "[cat]",
        "[cat, dog]",
        "{cat}",
        "(a dog) and b",
        "(a, b)",
        "(1)",
        "(1) and (2)",
        "[5](x)",
        '["Stop"] sign, [red]',
        '("A cat" is the title)',
        '("Stop")',
        "('A', 'B') by C",
        "('tis the season",
        "array of (lights)",
        "set([A] and [B])",
        '"a", "b"',
        "[...]",
        "[",
    ],
)
def test_a_caption_with_brackets_stays_a_caption(tmp_path, caption):
    assert pairs(one_cell(tmp_path, caption)) == [("0.jpg", caption)]
    assert pairs(one_cell(tmp_path, caption, caption_lists="each")) == [("0.jpg", caption)]


# One folder serves all examples: each writes its table anew.
QUIET = {
    "derandomize": True,
    "deadline": None,
    "suppress_health_check": [HealthCheck.function_scoped_fixture],
}
# Lines that begin like a row are told from rows by nobody; NUL and half pairs are named.
TEXT = st.text(
    # Nothing tells a backslash that escapes from one that is meant.
    st.characters(blacklist_categories=("Cs",), blacklist_characters="\0\ufeff\\"),
    max_size=20,
)
HARD = st.text("\",;|\t\n\r' ab", max_size=12)
CELLS = st.one_of(TEXT, HARD).filter(lambda text: not text.lstrip().startswith(("[", "(", "{")))
SEPARATORS = st.sampled_from(",\t;|")


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    captions=st.lists(CELLS, min_size=1, max_size=8),
    notes=st.lists(HARD, min_size=8, max_size=8),
    separator=SEPARATORS,
    end=st.sampled_from(["\n", "\r\n", "\r"]),
    order=st.permutations(["file", "caption", "note"]),
    encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-32", "utf-16-le"]),
)
def test_a_well_formed_table_comes_out_exactly(
    tmp_path, captions, notes, separator, end, order, encoding
):
    text = io.StringIO(newline="")
    writer = csv.writer(text, delimiter=separator, lineterminator=end, quoting=csv.QUOTE_ALL)
    writer.writerow(order)
    rows = [
        {"file": f"{i}.jpg", "caption": caption, "note": notes[i]}
        for i, caption in enumerate(captions)
    ]
    writer.writerows([row[name] for name in order] for row in rows)
    listing = listed(tmp_path, "t.csv", text.getvalue().encode(encoding))
    assert listing.rejected == []
    assert pairs(listing) == [(row["file"], row["caption"]) for row in rows]


QUOTINGS = [csv.QUOTE_ALL, csv.QUOTE_MINIMAL, csv.QUOTE_NONNUMERIC, csv.QUOTE_NONE]


def naive(rows: list[tuple[str, str]], separator: str, end: str) -> str:
    return "".join(f"{image}{separator}{caption}{end}" for image, caption in rows)


@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    captions=st.lists(st.one_of(TEXT, HARD), min_size=1, max_size=8),
    separator=SEPARATORS,
    end=st.sampled_from(["\n", "\r\n", "\r"]),
    quoting=st.sampled_from(["naive", *QUOTINGS]),
    quote=st.sampled_from("\"'"),
    escape=st.booleans(),
)
@example(captions=['\r""|'], separator="|", end="\r", quoting="naive", quote='"', escape=False)
@example(captions=['""\r|'], separator="|", end="\r", quoting="naive", quote='"', escape=False)
def test_whoever_wrote_a_table_its_pairs_are_right_or_named(
    tmp_path, captions, separator, end, quoting, quote, escape
):
    rows = [(f"{i}.jpg", caption) for i, caption in enumerate(captions)]
    if quoting == "naive":
        text = naive([("file", "caption"), *rows], separator, end)
    else:
        stream = io.StringIO(newline="")
        csv.writer(
            stream,
            delimiter=separator,
            lineterminator=end,
            quoting=quoting,
            quotechar='"' if quoting == csv.QUOTE_NONE else quote,
            doublequote=quote == "'" or not escape,
            escapechar="\\",
        ).writerows([("file", "caption"), *rows])
        text = stream.getvalue()
    if quote == "'" and quoting in (csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC):
        with pytest.raises(ValueError, match=r"--caption-column|--image-column"):
            listed(tmp_path, "t.csv", text)
        return
    listing = listed(tmp_path, "t.csv", text)
    assert listing.total >= len(rows)
    told = {image for image, _ in pairs(listing)} | {
        source.split(" ", 1)[1] for source, _ in listing.rejected if " " in source
    }
    wrong = [pair for pair in pairs(listing) if pair[0].endswith(".jpg") and not same(pair, rows)]
    assert wrong == []
    # Where a row's own line is known, it is told.
    if quoting == "naive" and not any(set("\r\n") & set(caption) for caption in captions):
        assert listing.total == len(rows)
        assert len(told) == len(rows)


def same(pair: tuple[str, str], rows: list[tuple[str, str]]) -> bool:
    """Whether a pair is one of the rows, but for white space around the caption."""
    image, caption = pair
    truth = dict(rows)[image]
    # A row of separators and empty quotes alone is a blank one, and no rest that counts.
    texts = [text.strip() for text in (truth, re.sub(r'[\r\n]([\s,;|]|"")*$', "", truth))]
    # Quotes around all of a caption are those of CSV for everybody who reads it.
    bare = [text[1:-1].replace('""', '"').strip() for text in texts if text[:1] == text[-1:] == '"']
    return caption.strip() in (*texts, *bare)
