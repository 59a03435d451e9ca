"""clipfast.storage: paths as text, globs against Python's, files that appear whole."""

import glob
import os
import random
from pathlib import Path

import pytest

from clipfast.storage import FileStorage, Storage, storage_of
from clipfast.storage.paths import join, relative, split, split_extension, tidy

FILES = FileStorage()


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("a/b.tar", ("a", "b.tar")),
        ("b.tar", ("", "b.tar")),
        ("/b.tar", ("/", "b.tar")),
        ("mem://b.tar", ("mem://", "b.tar")),
        ("mem://a/b.tar", ("mem://a", "b.tar")),
    ],
)
def test_split_and_join_are_inverse(path, expected):
    assert split(path) == expected
    assert join(*expected) == path


@pytest.mark.parametrize("path", ["a/b.tar", "b", "a.b/c", ".tar", "a/.tar", "/x.y.z"])
def test_paths_without_a_scheme_are_os_paths(path):
    assert split_extension(path) == os.path.splitext(path)
    for prefix in ("", "./", "a//"):
        assert tidy(prefix + path) == str(Path(prefix + path))
    assert join("a", path) == os.path.join("a", path)
    assert relative(join("a/c", "d/e"), "a/c") == "d/e"


def test_split_extension_and_tidy_of_a_scheme():
    assert split_extension("mem://a.b/c") == ("mem://a.b/c", "")
    assert split_extension("mem://a/c.tar") == ("mem://a/c", ".tar")
    assert (tidy("mem://a/b/"), tidy("mem://")) == ("mem://a/b", "mem://")


@pytest.fixture
def tree(tmp_path):
    """Files, hidden ones, links and folders whose names end like files."""
    for name in ("a/1.tar", "a/b/2.tar", "a/b/.h.tar", "c[1]/3.tar", ".d/4.tar", "5.tar", "6.idx"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "folder.tar").mkdir()
    (tmp_path / "link.tar").symlink_to("5.tar")
    (tmp_path / "dangling.tar").symlink_to("nothing")
    (tmp_path / "linked").symlink_to("a")
    return tmp_path


@pytest.mark.parametrize(
    "pattern",
    ["*", "*.tar", "**/*.tar", "**", "a/**", "*/*.tar", "?/1.tar", "*/b/*", "c[[]1]/*.tar",
     "[5-6].*", ".*/*.tar", "**/b/**/*", "a/*/.*",
     "nothing/*.tar", "linked/*.tar", "5.ta[r]/*", "*/1.tar"],
)  # fmt: skip
@pytest.mark.parametrize("generic", [False, True])
def test_glob_equals_pythons(tree, monkeypatch, pattern, generic):
    monkeypatch.chdir(tree)
    for whole in (pattern, f"{tree}/{pattern}"):
        found = Storage.glob(FILES, whole) if generic else FILES.glob(whole)
        expected = {path.rstrip("/") for path in glob.glob(whole, recursive=True)}
        assert {path.rstrip("/") for path, _ in found} - {""} == expected
        assert [path for path, _ in found] == sorted(path for path, _ in found)
        assert all(is_file == os.path.isfile(path) for path, is_file in found if path)


def test_files_appear_whole_or_not_at_all(tmp_path):
    path = str(tmp_path / "x")
    FILES.write_atomic(path, b"old")
    writer = FILES.create(path)
    writer.write(b"ne")
    assert FILES.read(path) == b"old"
    writer.write(b"w")
    writer.commit()
    writer.abort()
    assert FILES.read(path) == b"new"
    writer = FILES.create(path)
    writer.write(b"lost")
    writer.abort()
    assert (FILES.read(path), os.listdir(tmp_path)) == (b"new", ["x"])
    FILES.remove(path)
    FILES.remove(path)
    assert not FILES.exists(path)


def test_file_reader_reads_ranges_streams_and_closes(tmp_path):
    data = bytes(random.Random(0).randbytes(3 << 20))
    (tmp_path / "x").write_bytes(data)
    before = len(os.listdir("/proc/self/fd"))
    with FILES.open(str(tmp_path / "x")) as reader:
        assert reader.size() == len(data)
        assert reader.read_at(5, 1000) == data[5:1005]
        assert reader.read_at(len(data) - 3, 10) == data[-3:]
        assert reader.stream().read() == data
    assert len(os.listdir("/proc/self/fd")) == before
    with pytest.raises(FileNotFoundError):
        FILES.open(str(tmp_path / "y"))


def test_file_urls_and_home_are_resolved(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert storage_of("file:///a").resolve("file:///a") == "/a"
    assert storage_of("~/a").resolve("~/a") == f"{tmp_path}/a"
