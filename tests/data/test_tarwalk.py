"""clipfast.data.tarwalk and tarheader: hostile, damaged, joined and odd tars are right or named."""

import io
import re
import subprocess
import tarfile
import time
import tracemalloc
from pathlib import Path

import pytest

from clipfast.data.tarheader import number, valid
from clipfast.data.tarwalk import walk
from tests.data.tars import END, header, member, padded, pair, pax, record, resum


def write(folder: Path, *parts: bytes) -> str:
    path = folder / "x.tar"
    path.write_bytes(b"".join(parts))
    return str(path)


def walked(path: str) -> tuple[list[tuple[str, bytes]], list[tuple[str | None, str]]]:
    """Names with their bytes, and what was noted."""
    data = Path(path).read_bytes()
    notes: list[tuple[str | None, str]] = []
    found = [
        (name, data[at : at + size])
        for name, at, size in walk(path, lambda name, why: notes.append((name, why)))
    ]
    return found, notes


A = ("a.jpg", b"image")
NEGATIVE = b"\xff" * 10 + b"\xfe\x00"
HUGE = b"\x80" + b"\0" * 3 + b"\xff" * 8


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ([header(at_124=NEGATIVE)], r"byte 512 its size is negative \(-512\)"),
        ([header(at_124=b"-0000000001\0")], "byte 512 b'-0000000001.*is no number"),
        ([header(at_124=b"+0000000001\0")], "is no number"),
        ([header(at_124=b"0000_000001\0")], "is no number"),
        ([header(at_124=b"0o000000001\0")], "is no number"),
        ([header(at_124=b"9999999999 \0")], "is no number"),
        ([header(at_124=b"hello world\0")], "is no number"),
        ([header(at_124=b"\x91" * 12)], "is no number"),
        ([header(at_136=b"yesterday   ")], "is no number"),
        ([header(at_124=HUGE)], "truncated: the member at byte 512 reaches to byte"),
        ([header(at_124=b"77777777777\0")], "truncated: the member at byte 512 reaches to byte"),
        ([pax(record(b"size", b"-512")), header()], "the size in a pax record is no number"),
        ([pax(record(b"size", b"1e3")), header()], "the size in a pax record is no number"),
        ([pax(record(b"size", b"9" * 5000)), header()], "the size in a pax record is no number"),
        ([pax(record(b"size", b"99999999")), header()], "truncated: the member at byte"),
        ([pax(b"0 path=b.jpg\n"), header()], "a pax record is malformed"),
        ([pax(b"5 path=b.jpg\n"), header()], "a pax record is malformed"),
        ([pax(b"99 path=b.jpg\n"), header()], "a pax record is malformed"),
        ([pax(b"-9 path=b.jpg\n"), header()], "a pax record has no length"),
        ([pax(b"99999999999999999999 path=b\n"), header()], "a pax record has no length"),
        ([pax(b"words without a length"), header()], "a pax record has no length"),
        ([pax(b"9 path:b\n"), header()], "a pax record is malformed"),
        ([pax(record(b"pa\0th", b"b")), header()], "the key of a pax record has a NUL"),
        ([pax(record(b"path", b"b\0.jpg")), header()], "is empty or has a NUL"),
        ([pax(record(b"path", b"")), header()], "is empty or has a NUL"),
        ([pax(record(b"path", b"b"), kind=b"g"), header()], "a global pax header gives all"),
        ([pax(record(b"size", b"1"), kind=b"g"), header()], "a global pax header gives all"),
        ([pax(record(b"GNU.sparse.major", b"1")), header()], "a sparse file is announced"),
        ([pax(record(b"path", b"b")), pax(record(b"path", b"c")), header()], "differ in its path"),
        ([pax(record(b"path", b"b"))], "header at byte .* has no file"),
        ([member("L", b"", b"L"), header()], "a long name is empty"),
        ([member("L", b"long\0", b"L"), b""], "header at byte .* has no file"),
        ([header("L", 1 << 30, b"L")], "a name or pax header claims 1,073,741,824 bytes"),
        ([header("x", 8**11 - 1, b"x")], "a name or pax header claims"),
        ([header(kind=b"S")], "holds a sparse file at byte 512"),
        ([header(kind=b"M")], r"several volumes \(byte 512\)"),
        ([header("d/", 700, b"\0"), bytes(1024)], "a folder has data"),
        ([pax(record(b"path", b"b.jpg")), member("d/", b"data", b"\0")], "a folder has data"),
        ([header(at_257=b"ustar 00", at_345=b"folder")], "a prefix for its name"),
        ([header(at_257=b"ustar  \0", at_345=b"folder")], "a prefix for its name"),
        ([header()[:300]], "truncated: it ends within the header at byte 512"),
        ([bytes([1]) + header()[1:]], "damaged: no valid header at byte 512"),
    ],
)  # fmt: skip
def test_hostile_headers_are_refused_by_name_and_byte(tmp_path, parts, message):
    path = write(
        tmp_path, header("first.jpg"), *parts, END if parts[-1:] != [header()[:300]] else b""
    )
    began = time.perf_counter()
    with pytest.raises(ValueError, match=message) as caught:
        list(walk(path))
    assert time.perf_counter() - began < 1
    said = str(caught.value)
    assert repr(path) in said
    assert re.search("fetch or pack it again|pack it without|pack them", said)


def test_memory_stays_small_whatever_a_header_claims(tmp_path):
    for kind in (b"L", b"K", b"x", b"g"):
        path = tmp_path / "x.tar"
        path.write_bytes(header("first.jpg") + header("h", 8 << 30 - 1, kind))
        # The claim is true of a file with a hole.
        with path.open("r+b") as file:
            file.truncate(9 << 30)
        tracemalloc.start()
        with pytest.raises(ValueError, match="claims"):
            list(walk(str(path)))
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
        tracemalloc.stop()


def test_zeros_without_end_are_named_and_not_read_through(tmp_path):
    path = write(tmp_path, member(*A), END)
    with open(path, "r+b") as file:
        file.truncate(1 << 40)
    found, notes = [], []
    began = time.perf_counter()
    found = list(walk(path, lambda *note: notes.append(note)))
    assert time.perf_counter() - began < 2
    assert found == [("a.jpg", 512, 5)]
    assert len(notes) == 1
    assert re.search(
        "1,099,494,849,536 bytes from byte 16,778,240 on were left unread", notes[0][1]
    )


def test_many_records_take_time_in_proportion(tmp_path):
    records = record(b"comment", b"") * 80_000
    path = write(tmp_path, pax(records, record(b"path", b"long.jpg")), member(*A), END)
    began = time.perf_counter()
    assert walked(path)[0] == [("long.jpg", b"image")]
    assert time.perf_counter() - began < 2


@pytest.mark.parametrize(
    "parts",
    [
        [member(*A)],
        [member("a.jpg", b"image", at_124=b"          5\0"[-12:])],
        [member("a.jpg", b"image", at_124=b"\x80" + (5).to_bytes(11, "big"))],
        [member("a.jpg", b"image", at_136=b"\xff" * 12)],
        [member("a.jpg", b"image", at_136=bytes(12), at_329=b"       \0" * 2)],
        [pax(record(b"size", b"5")), header(), padded(b"image")],
        [pax(record(b"comment", b"hello"), kind=b"g"), member(*A)],
        [pax(record(b"path", b"b"), record(b"path", b"a.jpg")), member("z", b"image")],
        [pax(record(b"path", b"a.jpg")), pax(record(b"path", b"a.jpg")), member("z", b"image")],
        [pax(record(b"size", b"5")), member("L", b"a.jpg\0", b"L"), header(), padded(b"image")],
        [member("a.jpg", b"image", at_257=b"ustar  \0")],
        [header("d/", 99, b"5"), header("d/", 0, b"\0"), member(*A)],
    ],
)
def test_what_tarfile_reads_too_is_read_alike(tmp_path, parts):
    path = write(tmp_path, *parts, END)
    assert walked(path) == ([A], [])
    with tarfile.open(path) as tar:
        files = [(m.name, tar.extractfile(m).read()) for m in tar if m.isreg()]
    assert files == [A]


def test_checksum_of_signed_bytes_is_taken(tmp_path):
    old = resum(header("été.jpg".encode("latin-1")), signed=True)
    assert old != header("été.jpg".encode("latin-1"))
    assert valid(old)
    assert [name for name, _ in walked(write(tmp_path, old, END))[0]] == ["\udce9t\udce9.jpg"]


def test_incremental_archives_of_gnu_tar_have_no_prefixes(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "a.jpg").write_bytes(b"image")
    command = [
        "tar",
        "-cf",
        str(tmp_path / "x.tar"),
        "--listed-incremental=list",
        "--format=gnu",
    ]
    subprocess.run([*command, "in"], cwd=tmp_path, check=True)
    found, notes = walked(str(tmp_path / "x.tar"))
    assert found == [("in/a.jpg", b"image")]
    assert [name for name, _ in notes] == ["in/"]


def test_numbers():
    assert [number(field) for field in (b"0000017\0", b"     17 ", b"\0\0\0\0", b"17\0junk")] == [
        15, 15, 0, 15,
    ]  # fmt: skip
    assert number(b"\x80\0\0\0\0\0\0\0\0\0\0\x11") == 17
    assert number(b"\xff" * 12) == -1
    for bad in (b"18\0", b"1 7\0", b"-1\0", b"0x1\0", b"\xc0\0\0\1", b"1_0\0"):
        with pytest.raises(ValueError, match="no number"):
            number(bad)


def test_hard_links_are_the_file_that_they_point_to(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "a.jpg").write_bytes(b"image")
    (folder / "b.jpg").hardlink_to(folder / "a.jpg")
    (folder / "a.txt").write_bytes(b"one")
    (folder / "b.txt").write_bytes(b"two")
    (folder / "c.jpg").symlink_to("a.jpg")
    for style in ("gnu", "ustar", "posix", "v7"):
        path = str(tmp_path / f"{style}.tar")
        names = ["./a.jpg", "a.txt", "b.jpg", "b.txt", "c.jpg"]
        subprocess.run(["tar", "-cf", path, f"--format={style}", *names], cwd=folder, check=True)
        found, notes = walked(path)
        assert found == [
            ("./a.jpg", b"image"), ("a.txt", b"one"), ("b.jpg", b"image"), ("b.txt", b"two"),
        ]  # fmt: skip
        assert [name for name, _ in notes] == ["c.jpg"]
        assert "link to 'a.jpg'; pack it with tar --dereference" in notes[0][1]


def test_links_to_long_names_and_to_links(tmp_path):
    long = "d/" * 90 + "a.jpg"
    parts = [
        pax(record(b"path", long.encode())), member("short", b"image"),
        member("K", long.encode() + b"\0", b"K"), header("b.jpg", 0, b"1", at_157=b"cut"),
        pax(record(b"linkpath", b"b.jpg")), header("c.jpg", 0, b"1"),
        header("later.jpg", 0, b"1", at_157=b"z.jpg"), member("z.jpg", b"last"),
    ]  # fmt: skip
    found, notes = walked(write(tmp_path, *parts, END))
    assert found == [
        (long, b"image"), ("b.jpg", b"image"), ("c.jpg", b"image"), ("z.jpg", b"last"),
    ]  # fmt: skip
    assert notes == [("later.jpg", "left out: hard link to 'z.jpg', which is no file before it")]


def test_what_is_no_file_is_named(tmp_path):
    kinds = {b"2": "link to", b"3": "a device", b"4": "a device", b"6": "a named pipe"}
    kinds |= {b"V": "the label of a volume", b"D": "a folder's list"}
    parts = [header(f"{k.decode()}.jpg", 0, k) for k in kinds] + [member("q.jpg", b"data", b"Q")]
    found, notes = walked(write(tmp_path, *parts, header("slash/"), member(*A), END))
    assert found == [A]
    assert [name for name, _ in notes] == [
        "2.jpg",
        "3.jpg",
        "4.jpg",
        "6.jpg",
        "V.jpg",
        "D.jpg",
        "q.jpg",
        "slash/",
    ]
    for (_, why), said in zip(notes, [*kinds.values(), "unknown kind b'Q'", "slash"], strict=True):
        assert said in why


def archive(*names: str) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name in names:
            info = tarfile.TarInfo(name)
            info.size = 4
            tar.addfile(info, io.BytesIO(b"data"))
    return buffer.getvalue()


@pytest.mark.parametrize("between", [b"", bytes(512), bytes(100 * 512), bytes(3 << 20)])
def test_joined_archives_are_read_to_the_end_and_named(tmp_path, between):
    first, second = archive("a.jpg", "a.txt"), archive("b.jpg", "b.txt")
    found, notes = walked(write(tmp_path, first, between, second, bytes(1024)))
    assert [name for name, _ in found] == ["a.jpg", "a.txt", "b.jpg", "b.txt"]
    at = len(first) + len(between)
    assert len(notes) == 1
    assert f"another archive begins at byte {at:,}" in notes[0][1]
    alone = walked(write(tmp_path, bytes(10240), second))
    assert [name for name, _ in alone[0]] == ["b.jpg", "b.txt"]


@pytest.mark.parametrize(
    "rest",
    [b"garbage", b"g" * 5000, bytes(700) + b"x", archive("b.jpg")[1:], b"\x1f\x8b" + b"z" * 600],
)
def test_what_lies_behind_the_end_and_is_no_tar_is_named_with_its_size(tmp_path, rest):
    first = archive("a.jpg")
    found, notes = walked(write(tmp_path, first, rest))
    assert [name for name, _ in found] == ["a.jpg"]
    (_, why), = notes  # fmt: skip
    left = int(
        re.match(r"([\d,]+) bytes from byte ([\d,]+) on were left unread", why)[1].replace(",", "")
    )
    assert left >= len(rest.strip(b"\0"))
    assert "are no tar" in why


def test_a_tar_cut_between_members_is_named(tmp_path):
    path = write(tmp_path, pair("a"))
    found, notes = walked(path)
    assert len(found) == 2
    assert notes == [
        (None, "shard has no end mark: it may have been cut at byte 2,048, between members")
    ]


def test_names_that_steer_a_terminal_are_quoted_in_refusals(tmp_path):
    path = write(tmp_path, header("\x1b[31m.jpg", kind=b"1", at_157=b"\x1b]0;x"), END)
    assert "\x1b" not in walked(path)[1][0][1]
