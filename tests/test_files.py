"""Files stand whole or not at all, and what killed writers left goes."""

import errno
import os
import re
import shutil
import signal
import socket
import stat
import subprocess
import sys

import pytest

from clipfast.files import explain, free_bytes, remove_stale, sync_path, whole_file, write_whole


@pytest.mark.parametrize("name", ["file", "with space", "odd[1]*?.json", ".hidden"])
def test_files_are_replaced_whole_and_leave_nothing_beside(tmp_path, name):
    path = tmp_path / name
    write_whole(path, b"before")
    write_whole(path, b"after")
    assert path.read_bytes() == b"after"
    assert os.listdir(tmp_path) == [name]


def test_files_keep_what_they_held_where_the_writer_fails(tmp_path):
    path = tmp_path / "file"
    write_whole(path, b"before")

    def interrupted() -> None:
        with whole_file(path) as temporary:
            temporary.write_bytes(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert path.read_bytes() == b"before"
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("umask", [0o022, 0o027, 0o077])
def test_files_have_the_mode_of_the_umask(tmp_path, umask):
    before = os.umask(umask)
    try:
        with whole_file(tmp_path / "file") as temporary:
            # A writer that makes its own file, for its owner alone.
            temporary.unlink()
            os.close(os.open(temporary, os.O_CREAT | os.O_WRONLY, 0o600))
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o666 & ~umask


def test_files_are_synced_before_they_are_named_and_their_folder_after(tmp_path, monkeypatch):
    calls = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(
        os, "fsync", lambda fd: (calls.append(os.readlink(f"/proc/self/fd/{fd}")), fsync(fd))
    )
    monkeypatch.setattr(os, "replace", lambda a, b: (calls.append("replace"), replace(a, b)))
    write_whole(tmp_path / "file", b"content")
    assert calls[0].endswith(".tmp")
    assert calls[1:] == ["replace", str(tmp_path)]
    calls.clear()
    write_whole(tmp_path / "file", b"content", sync=False)
    assert calls == ["replace"]


def test_files_of_killed_writers_go_and_those_of_the_living_stay(tmp_path):
    path = tmp_path / "file"
    code = (
        "import sys, os, signal; from clipfast.files import whole_file\n"
        "with whole_file(sys.argv[1]) as t:\n"
        "    t.write_bytes(b'half'); os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], check=False)
    assert done.returncode == -signal.SIGKILL
    (left,) = tmp_path.iterdir()
    alive = tmp_path / f".file.{os.getppid()}@{socket.gethostname()}.tmp"
    elsewhere = tmp_path / ".file.1@another.host.tmp"
    other = tmp_path / left.name.replace(".file.", ".file.other.")
    for kept in (alive, elsewhere, other):
        kept.write_bytes(b"")
    assert remove_stale(path) == [left]
    assert set(tmp_path.iterdir()) == {alive, elsewhere, other}


def test_files_sync_says_what_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError):
        sync_path(tmp_path / "nothing")


def _error(number: int) -> OSError:
    return OSError(number, os.strerror(number))


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO])
def test_files_explain_names_path_reason_and_free_space(tmp_path, number):
    path = tmp_path / "run" / "not there yet" / "file"
    text = explain(_error(number), path)
    assert text.startswith(f"{path}: {os.strerror(number)}; ")
    assert re.search(r"; \d[\d.]* (bytes|[KMGT]B) free on that file system", text)


def test_files_explain_says_nothing_of_space_where_it_is_no_reason(tmp_path):
    path = tmp_path / "file"
    assert explain(_error(errno.EACCES), path) == f"{path}: Permission denied"
    assert explain(OSError("a plain reason"), path) == f"{path}: a plain reason"


def test_files_explain_says_where_files_run_out_before_bytes(tmp_path, monkeypatch):
    found = os.statvfs_result((4096, 4096, 9, 9, 9, 10, 0, 0, 0, 255))
    monkeypatch.setattr(os, "statvfs", lambda _: found)
    assert "no further file fits" in explain(_error(errno.ENOSPC), tmp_path / "file")


@pytest.mark.parametrize(
    ("free", "text"),
    [(0, "0 bytes"), (999, "999 bytes"), (1500, "1.5 KB"), (1_230_000_000, "1.2 GB"),
     (5_600_000_000_000, "5.6 TB")],
)  # fmt: skip
def test_files_explain_gives_sizes_that_a_person_reads(tmp_path, monkeypatch, free, text):
    monkeypatch.setattr("clipfast.files.free_bytes", lambda _: free)
    assert f"; {text} free on that" in explain(_error(errno.ENOSPC), tmp_path / "file")


def test_files_free_bytes_are_those_of_the_nearest_folder(tmp_path):
    path = tmp_path / "a" / "b"
    assert abs(free_bytes(path) - shutil.disk_usage(tmp_path).free) < 1 << 30
