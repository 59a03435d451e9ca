"""Schemes that fsspec knows are read as stores are: by range, held to a version, with a cache."""

from __future__ import annotations

from pathlib import Path

import fsspec
import pytest

from clipfast import storage
from clipfast.data import index
from clipfast.storage import Cache, FsspecStorage, StoreOptions, storage_of
from clipfast.storage.elsewhere import elsewhere
from clipfast.storage.failures import ChangedError
from tests.storage.conftest import quick
from tests.storage.test_objects import assert_equal, take

pytestmark = pytest.mark.xdist_group("stores")


@pytest.fixture
def memory(folder):
    system = fsspec.filesystem("memory")
    storage.configure(StoreOptions(patience=5))
    store = storage_of("memory://set")
    assert isinstance(store, FsspecStorage)
    for path in sorted(folder.iterdir()):
        if path.suffix in (".tar", ".idx"):
            store.write_atomic(f"memory://set/{path.name}", path.read_bytes())
    store._patience = quick(5)
    yield system
    system.rm("/set", recursive=True)
    storage.configure(StoreOptions())


@pytest.mark.parametrize("pattern", ["{00000..00002}.tar", "0*.tar"])
def test_training_from_a_place_of_fsspec_equals_training_from_files(memory, folder, pattern):
    local = take(str(folder / "{00000..00002}.tar"))
    assert_equal(take(f"memory://set/{pattern}"), local)


def test_its_shards_are_copied_into_a_cache(memory, folder, tmp_path):
    cache = Cache(str(tmp_path), 10**9)
    storage.configure(StoreOptions(patience=5), cache)
    path = "memory://set/00001.tar"
    store = storage_of(path)
    with store.open(path) as reader:
        assert cache.fetch(path, store.stat(path), reader)
    (copy,) = Path(cache.folder).glob("objects/*.tar")
    assert copy.read_bytes() == (folder / "00001.tar").read_bytes()
    assert_equal(take("memory://set/0*.tar"), take(str(folder / "{00000..00002}.tar")))


def test_an_object_that_changes_while_it_is_read_is_an_error(memory, folder):
    path = "memory://set/00000.tar"
    store = storage_of(path)
    with store.open(path) as reader:
        data = reader.read_at(0, 600)
        assert data == (folder / "00000.tar").read_bytes()[:600]
        store.write_atomic(path, (folder / "00000.tar").read_bytes())
        with pytest.raises(ChangedError, match="has changed while it is read: its version was"):
            reader.read_at(0, 600)


def test_what_fails_in_passing_is_asked_for_again(memory, folder, monkeypatch):
    failures = iter([OSError("broken pipe"), TimeoutError(), EOFError()])
    whole = type(memory).cat_file

    def cat_file(self, *args, **options):
        for failure in failures:
            raise failure
        return whole(self, *args, **options)

    monkeypatch.setattr(type(memory), "cat_file", cat_file)
    path = "memory://set/00000.tar"
    with storage_of(path).open(path) as reader:
        assert reader.read_at(0, 600) == (folder / "00000.tar").read_bytes()[:600]


def test_indexes_are_written_there_and_nothing_else_is_left(memory):
    storage_of("memory://set").remove("memory://set/00002.idx")
    storage_of("memory://set").remove("memory://set/none")
    done = index.index_shards(["memory://set/00002.tar"], workers=1, dali=False, progress=False)
    assert done.good == 9
    names = {each.name for each in storage_of("memory://set").list("memory://set")}
    assert "00002.idx" in names
    assert not any(name.startswith(".") for name in names)


def test_a_scheme_that_nobody_knows_and_one_without_its_package_are_told(monkeypatch):
    with pytest.raises(ValueError, match="nor does fsspec know it"):
        storage_of("nowhere://set/0.tar")

    with pytest.raises(FileNotFoundError, match="there is no such object"):
        storage_of("memory://set").size("memory://set/none.tar")

    def lacks(scheme):
        raise ImportError("SFTPFileSystem requires 'paramiko' to be installed")

    monkeypatch.setattr(fsspec, "get_filesystem_class", lacks)
    with pytest.raises(ValueError, match=r"lacks a package for it: .*paramiko"):
        elsewhere("sftp")
