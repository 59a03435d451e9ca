"""Whatever writes a file under a final name: full and read-only disks, killed writers, umask."""

from __future__ import annotations

import io
import os
import re
import signal
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clipfast.data.index import index_shards
from clipfast.data.pack import pack_items
from clipfast.data.packlist import Item
from clipfast.data.report import Report
from clipfast.data.shardwriter import ShardWriter
from clipfast.files import explain, whole_file
from clipfast.models import export
from clipfast.storage import FileStorage
from tests.models.helpers import small_model
from tests.needs import need

DISK = 1 << 20


def _picture(i: int) -> bytes:
    """A JPEG of some 20 KB."""
    buffer = io.BytesIO()
    pixels = np.random.default_rng(i).integers(0, 255, (160, 160, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def _export_pt(folder: Path) -> None:
    export(small_model("ViT-tiny"), folder / "model.pt")


def _export_safetensors(folder: Path) -> None:
    export(small_model("ViT-tiny"), folder / "model.safetensors")


def _pack(folder: Path) -> None:
    source = folder.parent / "pictures"
    source.mkdir(exist_ok=True)
    items = []
    for i in range(80):
        (source / f"{i}.jpg").write_bytes(_picture(i))
        items.append(Item(f"{i}", str(source / f"{i}.jpg"), b"a caption"))
    pack_items(items, [], str(folder), workers=1, dali=False, progress=False)


def _index(folder: Path) -> None:
    index_shards([str(folder / "00000.tar")], workers=1, dali=False, progress=False)


def _shard(folder: Path) -> None:
    writer = ShardWriter(str(folder), 4)
    for i in range(4):
        writer.add(_picture(i), "jpg", b"a caption")
    (folder / "00000.idx").unlink()


WRITERS = pytest.mark.parametrize(
    ("write", "names"),
    [
        (_export_pt, {"model.pt"}),
        (_export_safetensors, {"model.safetensors"}),
        (_pack, {"00000.tar", "00000.idx", "pack_report.tsv"}),
        (_index, {"00000.idx", "index_report.tsv"}),
    ],
)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB, with a shard on it."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={DISK}", "tmpfs", str(folder)]
    need("mount")
    subprocess.run(command, check=True, capture_output=True)
    try:
        _shard(folder)
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def _fill(folder: Path) -> None:
    with open(folder / "filler", "wb", buffering=0) as file:
        while True:
            try:
                file.write(bytes(4096))
            except OSError:
                return


@WRITERS
def test_writers_on_a_full_disk_name_the_file_and_leave_nothing(
    write: Callable[[Path], None], names: set[str], disk: Path
) -> None:
    _fill(disk)
    if write is _pack:
        (disk / "00000.tar").unlink()  # packing refuses a folder with shards
    before = sorted(os.listdir(disk))
    with pytest.raises(OSError, match=r"No space left on device; .* free on that file") as error:
        write(disk)
    named = re.findall(re.escape(str(disk)) + r"/([^:/]+): No space left", str(error.value))
    assert named
    assert set(named) <= names
    assert sorted(os.listdir(disk)) == before


@WRITERS
def test_writers_on_a_read_only_disk_name_it(
    write: Callable[[Path], None], names: set[str], disk: Path
) -> None:
    if write is _pack:
        (disk / "00000.tar").unlink()
    before = sorted(os.listdir(disk))
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    with pytest.raises(OSError, match=re.escape(str(disk)) + ".*: Read-only file system; .* free"):
        write(disk)
    assert sorted(os.listdir(disk)) == before


def test_a_failed_export_keeps_the_file_of_before(disk: Path) -> None:
    path = disk / "model.pt"
    path.write_bytes(b"before")
    with pytest.raises(OSError, match="No space left"):
        export(small_model("ViT-tiny"), path)
    assert path.read_bytes() == b"before"


def test_a_device_that_is_full_is_named(tmp_path: Path) -> None:
    path = tmp_path / "file"

    def write() -> None:
        with whole_file(path), open("/dev/full", "wb", buffering=0) as full:
            full.write(b"x")

    with pytest.raises(OSError, match=re.escape(f"{path}: No space left on device; ")) as error:
        write()
    # Said once, however often it is passed on.
    assert explain(error.value, path) == error.value.strerror
    assert not list(tmp_path.iterdir())


def test_errors_of_other_files_keep_their_names(tmp_path: Path) -> None:
    def write() -> None:
        with whole_file(tmp_path / "file"):
            (tmp_path / "absent").read_bytes()

    with pytest.raises(FileNotFoundError, match="absent") as error:
        write()
    assert error.value.filename == str(tmp_path / "absent")


@WRITERS
def test_writers_files_have_the_mode_of_the_umask(
    write: Callable[[Path], None], names: set[str], tmp_path: Path
) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    if write is _index:
        _shard(folder)
    before = os.umask(0o027)
    try:
        write(folder)
    finally:
        os.umask(before)
    modes = {name: stat.S_IMODE((folder / name).stat().st_mode) for name in names}
    assert modes == dict.fromkeys(names, 0o640)


@WRITERS
def test_writers_files_are_on_the_disk_before_they_have_their_names(
    write: Callable[[Path], None],
    names: set[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    if write is _index:
        _shard(folder)
    events: list[tuple[str, str]] = []
    fsync, replace = os.fsync, os.replace

    def note_sync(descriptor: int) -> None:
        events.append(("sync", os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}"))))
        fsync(descriptor)

    def note_name(source: Path, target: Path) -> None:
        events.append(("name", os.path.basename(target)))
        assert events[-2] == ("sync", os.path.basename(source))
        replace(source, target)

    monkeypatch.setattr(os, "fsync", note_sync)
    monkeypatch.setattr(os, "replace", note_name)
    write(folder)
    assert {name for what, name in events if what == "name"} == names
    assert events[-1] == ("sync", "out")


def _kill_while_writing(path: Path) -> None:
    code = (
        "import os, signal, sys; from clipfast.storage import FileStorage\n"
        "writer = FileStorage().create(sys.argv[1]); writer.write(b'half' * 99999)\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], check=False)
    assert done.returncode == -signal.SIGKILL


@WRITERS
def test_what_a_killed_writer_left_goes_with_the_next_one(
    write: Callable[[Path], None], names: set[str], tmp_path: Path
) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    if write is _index:
        _shard(folder)
        names = names | {"00000.tar"}
    _kill_while_writing(folder / min(names))
    assert [name for name in os.listdir(folder) if name.endswith(".tmp")]
    write(folder)
    assert set(os.listdir(folder)) == names


def test_indexing_again_removes_what_a_killed_one_left_though_nothing_is_to_do(
    tmp_path: Path,
) -> None:
    _shard(tmp_path)
    _index(tmp_path)
    _kill_while_writing(tmp_path / "00000.idx")
    alive = FileStorage().create(str(tmp_path / "other.idx"))
    _index(tmp_path)
    (left,) = (name for name in os.listdir(tmp_path) if name.endswith(".tmp"))
    assert left.startswith(".other.idx.")
    alive.abort()
    alive.abort()
    assert set(os.listdir(tmp_path)) == {"00000.tar", "00000.idx", "index_report.tsv"}


def test_a_report_that_cannot_be_written_is_named(disk: Path) -> None:
    _fill(disk)

    def write() -> None:
        with Report(str(disk / "report.tsv"), "a", "b") as report:
            for _ in range(9999):
                report.row("a long field of a report", "and another")

    with pytest.raises(OSError, match=r"disk/report\.tsv: No space left on device; "):
        write()
    assert not (disk / "report.tsv").exists()
