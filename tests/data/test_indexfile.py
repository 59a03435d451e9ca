"""clipfast.data.indexfile and indexmark: an index that does not fit its shard is named, always."""

import os
import random
import re
from pathlib import Path

import pytest

from clipfast.data import index, shards
from clipfast.data.indexmark import read_mark
from tests.data.tars import END, header, member, padded
from tests.data.test_index import JPEG
from tests.data.test_shards import make_tar, pairs


def indexed(folder: Path, marked: bool, n: int = 3) -> tuple[str, Path]:
    """A tar and its index, as this version or as 0.1 wrote it."""
    tar = make_tar(folder / "x.tar", pairs(n))
    path = Path(shards.write_index(tar, [s.entry for s in shards.scan(tar)]))
    if not marked:
        path.write_bytes(re.sub(rb"^(v1.2 \d+) .*", rb"\1", path.read_bytes()))
    return tar, path


# What is done to the text of an index, and what is said of one without and with a mark.
CHANGED = "its lines are not those that were written"
EDITS = {
    "version": (lambda t: t.replace("v1.2", "v1.1"), "first line", "first line"),
    "empty": (lambda t: "", "first line", "first line"),
    "one word": (lambda t: "v1.2\n", "first line", "first line"),
    "four words": (lambda t: "v1.2 3 4 5\n", "first line", "first line"),
    "no number": (lambda t: t.replace("v1.2 3", "v1.2 x"), "first line", "first line"),
    "negative": (lambda t: t.replace("v1.2 3", "v1.2 -3"), "first line", "first line"),
    "endless": (lambda t: t.replace("v1.2 3", "v1.2 " + "9" * 90), "first line", "first line"),
    "huge": (lambda t: t.replace("v1.2 3", f"v1.2 {10**19}"), "announces", "announces"),
    "count": (lambda t: t.replace("v1.2 3", "v1.2 4"), "announces 4 samples and holds 3", CHANGED),
    "cut": (lambda t: t[: t.rindex("\njpg ") + 1], "announces 3 samples and holds 2", CHANGED),
    "cut in a line": (lambda t: t[:-20], "line 4 does not hold", CHANGED),
    "outside": (lambda t: t.replace("jpg 512 ", "jpg 90112 "), "no member '0000.jpg'", CHANGED),
    "other": (lambda t: t.replace("jpg 512 ", "jpg 1024 "), "no member '0000.jpg' of 700", CHANGED),
    "odd": (lambda t: t.replace("jpg 512 ", "jpg 513 "), "no member '0000.jpg' of 700", CHANGED),
    "words": (lambda t: t.replace("jpg 512 ", "jpg x "), "not a number", CHANGED),
    "sign": (lambda t: t.replace("jpg 512 ", "jpg +512 "), "not a number", CHANGED),
    "minus": (lambda t: t.replace("jpg 512 ", "jpg -512 "), "not a number", CHANGED),
    "2^64": (lambda t: t.replace("jpg 512 ", f"jpg {2**64} "), "no number below 2^63", CHANGED),
    "2^63-1": (lambda t: t.replace("jpg 512 ", f"jpg {2**63 - 1} "), "no member", CHANGED),
    "size": (lambda t: t.replace(" 700 ", " 701 "), "no member '0000.jpg' of 701", CHANGED),
    "2 GiB": (lambda t: t.replace(" 700 ", f" {2**31} "), "above 2 GiB", CHANGED),
    "short line": (lambda t: t.replace("txt 2048 2 0000.txt", ""), "line 2 does not", CHANGED),
    "caption of another": (
        lambda t: t.replace("txt 2048 2 0000.txt", "txt 4608 2 0001.txt"),
        "line 2 pairs members of two samples", CHANGED,
    ),
    "name": (lambda t: t.replace("0000.jpg", "0001.jpg"), "no member '0001.jpg'", CHANGED),
    "doubled": (
        lambda t: t.replace("v1.2 3", "v1.2 4") + t.splitlines()[1] + "\n",
        "line 5 repeats line 2", CHANGED,
    ),
    "doubled, one lost": (
        lambda t: "\n".join([*t.splitlines()[:3], t.splitlines()[1], ""]),
        "line 4 repeats line 2", CHANGED,
    ),
    "order": (lambda t: "\n".join([*t.splitlines()[:1], *t.splitlines()[:0:-1], ""]), "", CHANGED),
    "white space": (lambda t: t.replace("\njpg 3", "\vjpg 3"), "", CHANGED),
    "line ends": (lambda t: t.replace("\n", "\r\n"), "", CHANGED),
}  # fmt: skip


@pytest.mark.parametrize("marked", [False, True])
@pytest.mark.parametrize("edit", EDITS)
def test_an_edited_index_is_refused_with_what_to_do(tmp_path, edit, marked):
    change, without, with_mark = EDITS[edit]
    message = with_mark if marked else without
    tar, path = indexed(tmp_path, marked)
    text = path.read_text()
    path.write_text(changed := change(text), newline="")
    assert changed != text
    if not message:
        # The same samples, written otherwise.
        assert sorted(shards.read_table(tar).keys()) == ["0000", "0001", "0002"]
        return
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        shards.read_table(tar)
    assert f"index {str(path)!r} does not fit its shard" in str(caught.value)
    assert f"python -m clipfast.data.index {tar} --force" in str(caught.value)
    if message == "first line":
        with pytest.raises(ValueError, match="first line"):
            shards.count(tar)


@pytest.mark.parametrize(
    ("mark", "message"),
    [
        (b"2:0123456789abcdef:10240:0123456789abcdef", "another version of clipfast"),
        (b"1:0123456789abcdef:10240:0123456789ABCDEF", "no mark"),
        (b"\x1b[31m", "no mark"),
        (b"1:0123456789abcdef:-1:0123456789abcdef", "no mark"),
    ],
)
def test_marks_that_cannot_be_read_are_named(tmp_path, mark, message):
    tar, path = indexed(tmp_path, True)
    first, _, lines = path.read_bytes().partition(b"\n")
    path.write_bytes(b" ".join([*first.split()[:2], mark]) + b"\n" + lines)
    for read in (shards.read_table, shards.count):
        with pytest.raises(ValueError, match=message) as caught:
            read(tar)
        assert "\x1b" not in str(caught.value)
    assert read_mark(first.split()[2]).word().encode() == first.split()[2]


@pytest.mark.parametrize("marked", [False, True])
def test_the_index_of_another_tar_is_refused(tmp_path, marked):
    tar, _ = indexed(tmp_path, marked)
    make_tar(tar, list(reversed(pairs(3))))
    with pytest.raises(ValueError, match="does not fit its shard"):
        shards.read_table(tar)
    make_tar(tar, [*pairs(3), ("more.jpg", b"x" * 20000)])
    if marked:
        for read in (shards.read_table, shards.count, lambda path: shards.counts([path])):
            with pytest.raises(ValueError, match=r"the tar has [\d,]+ bytes, and had 10,240 when"):
                read(tar)


def big(folder: Path, captions: str, seed: int = 0, n: int = 60) -> str:
    """A tar of 4 MB whose members differ in their bytes alone."""
    chance = random.Random(seed)
    members = [
        m
        for i in range(n)
        for m in ((f"{i:03d}.jpg", chance.randbytes(66_000)), (f"{i:03d}.txt", captions.encode()))
    ]
    return make_tar(folder / "x.tar", members)


@pytest.mark.parametrize(("captions", "seed"), [("cat", 1), ("dog", 0)])
def test_a_replacement_of_the_same_size_is_noticed_whatever_the_clock_says(
    tmp_path, captions, seed
):
    tar = big(tmp_path, "cat")
    path = shards.write_index(tar, [s.entry for s in shards.scan(tar)])
    before = os.stat(tar)
    assert len(shards.read_table(tar)) == 60
    big(tmp_path, captions, seed)
    os.utime(tar, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert os.path.getsize(tar) == before.st_size
    assert os.path.getmtime(path) >= os.path.getmtime(tar)
    with pytest.raises(ValueError, match="the tar has other content than when it was indexed"):
        shards.read_table(tar)
    summary = index.index_shards([tar], workers=1, dali=False)
    assert (summary.shards, summary.skipped) == (1, 0)


def test_one_sample_of_a_small_tar_replaced_is_noticed_and_indexed_anew(tmp_path):
    def write(caption: bytes) -> None:
        parts = [member("a.jpg", JPEG), member("a.txt", caption), member("b.jpg", JPEG)]
        (tmp_path / "x.tar").write_bytes(b"".join(parts) + member("b.txt", b"two") + END)
        os.utime(tmp_path / "x.tar", ns=(10**18, 10**18))

    tar = str(tmp_path / "x.tar")
    write(b"one")
    assert index.index_shards([tar], workers=1, dali=False).good == 2
    assert index.index_shards([tar], workers=1, dali=False).already_good == 2
    write(b" \n ")
    again = index.index_shards([tar], workers=1, dali=False)
    assert (again.good, again.skipped) == (1, 0)


def test_a_shard_that_is_written_to_while_it_is_indexed_is_no_good(tmp_path, monkeypatch):
    tar = make_tar(tmp_path / "x.tar", [("a.jpg", JPEG), ("a.txt", b"one")])
    check = index.IndexRun._checked

    def meanwhile(*arguments):
        make_tar(tar, [("a.txt", b"one"), ("a.jpg", JPEG)])
        check(*arguments)

    monkeypatch.setattr(index.IndexRun, "_checked", meanwhile)
    summary = index.index_shards([tar], workers=1, dali=False)
    assert (summary.failed, summary.good) == (1, 0)
    assert "was written to while it was indexed" in Path(summary.report).read_text()
    assert not shards.has_index(tar)


def test_an_index_of_version_0_1_loads_and_counts_as_up_to_date(tmp_path):
    tar = make_tar(tmp_path / "x.tar", [("a b.JPG", b"i" * 600), ("a b.txt", b"t")])
    old = "v1.2 1\njpg 512 600 a%20b.jpg txt 2048 1 a%20b.txt\n"
    Path(shards.index_path(tar)).write_text(old)
    table = shards.read_table(tar)
    assert (table.keys(), table.entry(0)) == (
        ["a b"],
        shards.Entry("a b", "jpg", 512, 600, 2048, 1),
    )
    assert index.index_shards([tar], workers=1, dali=False).already_good == 1
    shards.write_index(tar, [table.entry(0)])
    first, lines = Path(shards.index_path(tar)).read_text().split("\n", 1)
    assert lines == old.split("\n", 1)[1]
    assert re.fullmatch(r"v1\.2 1 1:[0-9a-f]{16}:10240:[0-9a-f]{16}", first)


def test_hard_links_and_repeated_keys_are_indexed(tmp_path):
    parts = [
        member("a.jpg", b"one"),
        member("a.txt", b"1"),
        member("a.jpg", b"two"),
        member("a.txt", b"2"),
    ]
    parts += [header("b.jpg", 0, b"1", at_157=b"a.jpg"), member("b.txt", b"3")]
    (tmp_path / "x.tar").write_bytes(b"".join(parts) + END)
    tar = str(tmp_path / "x.tar")
    path = Path(shards.write_index(tar, [s.entry for s in shards.scan(tar)]))
    for _ in range(2):
        table = shards.read_table(tar)
        assert table.keys() == ["a", "a", "b"]
        files = shards.ShardFiles([tar])
        images = [
            files.pread(0, int(o), int(s))
            for o, s in zip(table.image_offset, table.image_size, strict=True)
        ]
        assert images == [b"one", b"two", b"two"]
        path.write_bytes(re.sub(rb"^(v1.2 \d+) .*", rb"\1", path.read_bytes()))
    lines = path.read_text().splitlines()
    lines[1] = " ".join([*lines[1].split()[:4], *lines[2].split()[4:]])
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(ValueError, match="line 2 pairs members of two samples"):
        shards.read_table(tar)


def test_control_characters_of_keys_are_encoded(tmp_path):
    tar = make_tar(
        tmp_path / "x.tar", [("e\x1b[m\x07\x85\t%.jpg", b"i"), ("e\x1b[m\x07\x85\t%.txt", b"t")]
    )
    path = Path(shards.write_index(tar, [s.entry for s in shards.scan(tar)]))
    assert re.fullmatch(rb"[ -~\n]*", path.read_bytes())
    assert shards.read_table(tar).keys() == ["e\x1b[m\x07\x85\t%"]


def test_members_of_2_gib_are_named(tmp_path):
    path = tmp_path / "x.tar"
    with path.open("wb") as file:
        file.write(header("a.jpg", 2**31))
        file.seek(512 + 2**31)
        file.write(header("a.txt", 1) + padded(b"t") + END)
    (sample,) = shards.scan(str(path))
    assert "larger than 2,147,483,647 bytes" in sample.problem


def test_a_command_in_a_message_can_be_pasted(tmp_path):
    folder = tmp_path / "two words"
    folder.mkdir()
    tar, path = indexed(folder, True)
    path.write_text("nothing")
    with pytest.raises(ValueError, match=re.escape(f"index '{tar}' --force")):
        shards.read_table(tar)
