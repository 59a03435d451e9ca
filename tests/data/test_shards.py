"""clipfast.data.shards: what patterns name, and whether offsets equal those of Python's tarfile."""

import io
import logging
import os
import pickle
import re
import subprocess
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from clipfast.data import shards
from clipfast.data.tarheader import tar_header
from clipfast.data.tarwalk import walk


def add(tar: tarfile.TarFile, name: str, data: bytes = b"", **fields) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for field, value in fields.items():
        setattr(info, field, value)
    tar.addfile(info, io.BytesIO(data))


def make_tar(path, members, tar_format=tarfile.USTAR_FORMAT) -> str:
    with tarfile.open(path, "w", format=tar_format) as tar:
        for name, data in members:
            add(tar, name, data)
    return str(path)


def pairs(n: int) -> list[tuple[str, bytes]]:
    return [
        member
        for i in range(n)
        for member in ((f"{i:04d}.jpg", bytes([i]) * (700 + i)), (f"{i:04d}.txt", b"c%d" % i))
    ]


@pytest.fixture
def folder(tmp_path):
    for i in range(12):
        make_tar(tmp_path / f"{i:05d}.tar", pairs(i % 3 + 1))
    return tmp_path


def names(paths) -> list[str]:
    return [os.path.basename(path) for path in paths]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("{00003..00005}.tar", ["00003", "00004", "00005"]),
        ("{00005..00003}.tar", ["00005", "00004", "00003"]),
        ("0000{9,0,4}.tar", ["00009", "00000", "00004"]),
        ("0000{1,{3..4}}.tar", ["00001", "00003", "00004"]),
        ("000{0,1}{0,1}.tar", ["00000", "00001", "00010", "00011"]),
        ("000{08..11}.tar", ["00008", "00009", "00010", "00011"]),
        ("0001?.tar", ["00010", "00011"]),
        ("0000[25].tar", ["00002", "00005"]),
        ("000{1,0}[01].tar", ["00010", "00011", "00000", "00001"]),
    ],
)
def test_expand_patterns(folder, pattern, expected):
    assert names(shards.expand(f"{folder}/{pattern}")) == [f"{name}.tar" for name in expected]


def test_expand_sequence_sample_and_home(folder, monkeypatch):
    monkeypatch.setenv("HOME", str(folder))
    found = shards.expand(["~/00001.tar", "sample/twemoji", f"{folder}/00000.tar"])
    assert names(found) == ["00001.tar", "twemoji.tar", "00000.tar"]
    assert names(shards.expand("sample")) == ["noto-emoji.tar", "twemoji.tar"]
    assert names(shards.expand("sample/noto")) == ["noto-emoji.tar"]


def test_expand_glob_passes_over_indexes(folder):
    (folder / "00000.idx").write_text("v1.2 0\n")
    assert len(shards.expand(f"{folder}/*")) == 12


@pytest.mark.parametrize(
    ("pattern", "error", "message"),
    [
        ("F/{00000..00099}.tar", FileNotFoundError, r"88 of 100 shards are missing: .*/00012.tar"),
        ("F/x*.tar", FileNotFoundError, "matched nothing"),
        ("F/nowhere.tar", FileNotFoundError, "1 of 1 shards are missing"),
        ("tape://bucket/{0..9}.tar", ValueError, "'tape://' is not read.*copy the shards"),
        ("vault://host/*.tar", ValueError, "'vault://' is not read"),
        ("pipe:cat x.tar", ValueError, "'pipe:' is not read"),
        ("F/00000.tar.gz", ValueError, "does not end in '.tar'.*decompress"),
        ("F/{00000..x}.tar", ValueError, "neither a range"),
        ("F/{00000..00001.tar", ValueError, "without its '}'"),
        ([], ValueError, "at least one shard pattern"),
        ("", ValueError, "at least one shard pattern"),
        (["F/00000.tar", "F/*.tar"], ValueError, "named twice"),
    ],
)
def test_expand_refuses(folder, pattern, error, message):
    if isinstance(pattern, str):
        pattern = pattern.replace("F", str(folder))
    else:
        pattern = [text.replace("F", str(folder)) for text in pattern]
    with pytest.raises(error, match=message):
        shards.expand(pattern)


def odd_members(tar: tarfile.TarFile) -> None:
    add(tar, "folder", type=tarfile.DIRTYPE)
    add(tar, "folder/" + "long" * 20 + ".jpg", b"a" * 511)
    add(tar, "folder/" + "long" * 20 + ".txt", b"b" * 512)
    add(tar, "d" * 90 + "/" + "f" * 90 + ".png", b"c" * 513)
    add(tar, "d" * 90 + "/" + "f" * 90 + ".txt", b"")
    add(tar, "link.txt", type=tarfile.SYMTYPE, linkname="t" * 50)
    add(tar, "hard.txt", type=tarfile.LNKTYPE, linkname="folder", size=0)
    add(tar, "été é 東京.webp", b"d" * 1024)
    add(tar, "été é 東京.txt", b"e")


@pytest.mark.parametrize(
    "tar_format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]
)
def test_walk_equals_tarfile(tmp_path, tar_format):
    path = str(tmp_path / "odd.tar")
    headers = {"comment": "for all members"} if tar_format == tarfile.PAX_FORMAT else {}
    with tarfile.open(path, "w", format=tar_format, pax_headers=headers) as tar:
        odd_members(tar)
        if tar_format != tarfile.USTAR_FORMAT:
            add(tar, "x" * 300 + "/y.jpg", b"f" * 2000, mtime=1.5)
            add(tar, "link2", type=tarfile.SYMTYPE, linkname="t" * 300)
            add(tar, "after.jpg", b"g")
    with tarfile.open(path) as tar:
        expected = [(m.name, m.offset_data, m.size) for m in tar if m.isreg()]
    assert len(expected) >= 6
    assert list(walk(path)) == expected


def test_walk_reads_pax_size_and_base_256(tmp_path):
    record = b"12 size=600\n"
    data = b"z" * 600
    parts = bytearray(tar_header("p", len(record)))
    parts[156:157] = b"x"
    small = bytearray(tar_header("a.jpg", 0))
    large = bytearray(tar_header("a.txt", 0))
    large[124:136] = b"\x80" + (600).to_bytes(11, "big")
    for header in (parts, small, large):
        header[148:156] = b" " * 8
        header[148:156] = b"%06o\0 " % sum(header)
    path = tmp_path / "x.tar"
    block = data + bytes(1024 - 600)
    path.write_bytes(bytes(parts) + record.ljust(512, b"\0") + small + block + large + block)
    assert list(walk(str(path))) == [("a.jpg", 1536, 600), ("a.txt", 3072, 600)]


def test_walk_ignores_the_size_of_a_link(tmp_path):
    link = bytearray(tar_header("link.jpg", 5000))
    link[156:157] = b"1"
    link[148:156] = b" " * 8
    link[148:156] = b"%06o\0 " % sum(link)
    path = tmp_path / "x.tar"
    path.write_bytes(bytes(link) + tar_header("a.jpg", 3) + b"abc".ljust(512, b"\0"))
    with tarfile.open(path) as tar:
        assert [m.offset_data for m in tar if m.isreg()] == [1024]
    assert list(walk(str(path))) == [("a.jpg", 1024, 3)]


def test_walk_refuses_sparse_files(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"")
    os.truncate(tmp_path / "a.jpg", 1 << 20)
    path = str(tmp_path / "x.tar")
    for style in ("gnu", "posix"):
        command = ["tar", "-cSf", path, f"--format={style}", "a.jpg"]
        subprocess.run(command, cwd=tmp_path, check=True)
        with pytest.raises(ValueError, match="sparse file"):
            list(walk(path))


def test_walk_equals_gnu_tar_of_a_folder(tmp_path):
    (tmp_path / "in" / "sub").mkdir(parents=True)
    for name in ("a.jpg", "a.txt", "sub/b.png", "sub/b.txt"):
        (tmp_path / "in" / name).write_bytes(name.encode() * 100)
    path = str(tmp_path / "x.tar")
    subprocess.run(["tar", "--sort=name", "-cf", path, "."], cwd=tmp_path / "in", check=True)
    with tarfile.open(path) as tar:
        expected = [(m.offset_data, m.size) for m in tar if m.isreg()]
    assert [row[1:] for row in walk(path)] == expected
    assert shards.read_table(path).keys() == ["./a", "./sub/b"]


def test_scan_groups_by_the_rule_of_webdataset(tmp_path, caplog):
    jpg, txt = b"i" * 10, b"t"
    path = make_tar(
        tmp_path / "x.tar",
        [
            ("a.b/one.JPG", jpg),
            ("a.b/._one.jpg", jpg),
            ("a.b/README", b"no dot"),
            ("a.b/one.TXT", txt),
            ("two.jpg", jpg),
            ("three.txt", txt),
            ("two.txt", txt),
            ("four.json", b"{}"),
            ("four.txt", txt),
            ("four.webp", jpg),
            ("five.v2.jpg", jpg),
            ("five.txt", txt),
        ],
    )
    found = {}
    for sample in shards.scan(path):
        found.setdefault(sample.key, []).append(sample.problem)
    assert list(found) == ["a.b/one", "two", "three", "four", "five"]
    assert found["a.b/one"] == found["four"] == [""]
    assert "no caption" in found["two"][0]
    assert "no image" in found["two"][1]
    assert "no image" in found["three"][0]
    assert "found .v2.jpg" in found["five"][0]
    with caplog.at_level(logging.WARNING):
        table = shards.read_table(path)
    assert (len(table), table.left_out, table.keys()) == (2, 4, ["a.b/one", "four"])
    assert "4 samples without image or caption" in caplog.text
    assert table.entry(1).extension == "webp"


@pytest.mark.parametrize("foreign", [False, True])
def test_read_table_from_an_index_equals_the_scan(tmp_path, foreign):
    members = [m for i, pair in enumerate(zip(*[iter(pairs(50))] * 2, strict=True))
               for m in (*pair, (f"{i:04d}.json", b"{}"))]  # fmt: skip
    path = make_tar(tmp_path / "x.tar", members)
    scanned = shards.read_table(path)
    if foreign:
        import wds2idx

        with wds2idx.IndexCreator(path, shards.index_path(path), verbose=False) as creator:
            creator.create_index()
    else:
        shards.write_index(path, [s.entry for s in shards.scan(path)])
    assert shards.has_index(path)
    table = shards.read_table(path)
    for name in ("image_offset", "image_size", "caption_offset", "caption_size", "extension"):
        np.testing.assert_array_equal(getattr(table, name), getattr(scanned, name))
        assert getattr(table, name).dtype == getattr(scanned, name).dtype
    assert table.keys() == scanned.keys()
    assert shards.count(path) == 50


def test_write_index_keeps_keys_with_white_space(tmp_path):
    path = make_tar(tmp_path / "x.tar", [("my 100% pic.jpg", b"i"), ("my 100% pic.txt", b"t")])
    shards.write_index(path, [s.entry for s in shards.scan(path)])
    assert shards.read_table(path).keys() == ["my 100% pic"]
    assert len(Path(shards.index_path(path)).read_text().splitlines()[1].split()) == 8


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is a zero-byte file"),
        (bytes(10240), "is an empty tar"),
        (b"not a tar", "is no tar: it has 9 bytes"),
        (b"<html>" * 500, "is no tar: no valid header at byte 0"),
        (b"\x1f\x8b" + bytes(600), r"compressed \(gzip\)"),
    ],
)
def test_read_table_refuses_what_is_no_tar(tmp_path, data, message):
    path = tmp_path / "x.tar"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=message) as caught:
        shards.read_table(str(path))
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("cut", [600, 1000, 2048, 2100, 3000])
def test_read_table_refuses_a_truncated_tar(tmp_path, cut):
    path = make_tar(tmp_path / "x.tar", pairs(3))
    data = Path(path).read_bytes()
    Path(path).write_bytes(data[:cut])
    with pytest.raises(ValueError, match=re.escape(path) + ".*truncated"):
        shards.read_table(path)


def test_read_table_refuses_a_damaged_header_and_no_samples(tmp_path):
    path = make_tar(tmp_path / "x.tar", pairs(3))
    data = bytearray(Path(path).read_bytes())
    data[1540] ^= 1
    Path(path).write_bytes(data)
    with pytest.raises(ValueError, match="no valid header at byte 1,536"):
        shards.read_table(path)
    path = make_tar(tmp_path / "y.tar", [("a.jpg", b"x"), ("b.jpg", b"x")])
    with pytest.raises(ValueError, match="no complete sample among 2"):
        shards.read_table(path)


def test_counts_warns_once_when_many_shards_are_scanned(folder, caplog):
    found = shards.expand(f"{folder}/*.tar")
    with caplog.at_level(logging.WARNING):
        assert shards.counts(found).tolist() == [1, 2, 3] * 4
    assert caplog.text.count("12 of 12 shards have no index") == 1
    for path in found:
        shards.write_index(path, [s.entry for s in shards.scan(path)])
    caplog.clear()
    assert shards.counts(found).tolist() == [1, 2, 3] * 4
    assert not caplog.text
    assert shards.counts([]).shape == (0,)


def test_shard_files_reads_from_threads_with_few_descriptors(folder):
    found = shards.expand(f"{folder}/*.tar")
    tables = [shards.read_table(path) for path in found]
    files = pickle.loads(pickle.dumps(shards.ShardFiles(found, max_open=2)))
    before = len(os.listdir("/proc/self/fd"))

    def read(i: int) -> tuple[bytes, bytes]:
        table = tables[i % 12]
        last = len(table) - 1
        return (
            files.pread(i % 12, int(table.image_offset[last]), int(table.image_size[last])),
            files.pread(i % 12, int(table.caption_offset[last]), int(table.caption_size[last])),
        )

    with ThreadPoolExecutor(8) as pool:
        for i, (image, caption) in enumerate(pool.map(read, range(600))):
            last = i % 3
            assert image == bytes([last]) * (700 + last)
            assert caption == b"c%d" % last
    assert len(os.listdir("/proc/self/fd")) <= before + 2
    files.close()
    assert len(os.listdir("/proc/self/fd")) == before
    with pytest.raises(ValueError, match=r"00000.tar' ends at byte"):
        files.pread(0, 512, 1 << 20)
    with pytest.raises(ValueError, match="max_open"):
        shards.ShardFiles(found, max_open=0)


@pytest.mark.parametrize("name", ["sample/noto", "sample/twemoji"])
def test_embedded_sample_is_whole_indexed_and_has_distinct_captions(name):
    (path,) = shards.expand(name)
    table = shards.read_table(path)
    assert shards.has_index(path)
    assert shards.count(path) == len(table) == 1911
    files = shards.ShardFiles([path])
    captions = {
        files.pread(0, int(offset), int(size)).decode()
        for offset, size in zip(table.caption_offset, table.caption_size, strict=True)
    }
    assert len(captions) == 1911
    assert "grinning face" in captions
