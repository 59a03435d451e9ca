"""Files that stand whole, with their bytes on the disk, or not at all.

Whatever is written under a final name is written beside it first, synced, renamed over it, and its
folder synced. After a crash, of the process or of the machine, the name holds what was there before
or all of what is new.
"""

import os
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

# pid and host, so that what a killed process left can be told from what another one is writing.
_TEMPORARY = re.compile(r"\.(?P<name>.+)\.(?P<pid>\d+)@(?P<host>[^/@]+)\.tmp")


@contextmanager
def whole_file(path: str | os.PathLike[str], *, sync: bool = True) -> Iterator[Path]:
    """A temporary name to write to, put in place of ``path`` where the block ends well.

    Temporaries of the same file that killed processes of this machine left are deleted. The file's
    mode is what the umask says, whatever the writer gave it.

    Args:
        path: the final name.
        sync: wait until file and folder are on the disk.

    Yields:
        The name to write to; an empty file is there.

    Raises:
        OSError: it cannot be written; nothing is left of it, and ``path`` holds what it held.
    """
    path = Path(path)
    remove_stale(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}@{socket.gethostname()}.tmp")
    try:
        temporary.write_bytes(b"")
        mode = temporary.stat().st_mode & 0o777
        yield temporary
        temporary.chmod(mode)
        if sync:
            sync_path(temporary)
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise
    if sync:
        sync_path(path.parent)


def write_whole(path: str | os.PathLike[str], data: bytes, *, sync: bool = True) -> None:
    """Put ``data`` in place of a file; see ``whole_file``.

    Args:
        path: the final name.
        data: its content.
        sync: wait until it is on the disk.

    Raises:
        OSError: it cannot be written.
    """
    with whole_file(path, sync=sync) as temporary:
        temporary.write_bytes(data)


def sync_path(path: str | os.PathLike[str]) -> None:
    """Wait until a file's bytes, or a folder's names, are on the disk.

    Raises:
        OSError: they could not be written.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_stale(path: str | os.PathLike[str]) -> list[Path]:
    """Delete the temporaries of a file whose writers are dead.

    Args:
        path: a final name; the temporaries lie beside it.

    Returns:
        What was deleted.
    """
    path = Path(path)
    removed = []
    for temporary in path.parent.glob(f".{_glob_escaped(path.name)}.*.tmp"):
        found = _TEMPORARY.fullmatch(temporary.name)
        if (
            found is None
            or found["name"] != path.name
            or _may_be_alive(found["pid"], found["host"])
        ):
            continue
        with suppress(OSError):
            temporary.unlink()
            removed.append(temporary)
    return removed


def process_is_alive(pid: int) -> bool:
    """Whether a process of this number runs on this machine."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True


def _may_be_alive(pid: str, host: str) -> bool:
    # Another machine's processes cannot be seen from here.
    return host != socket.gethostname() or process_is_alive(int(pid))


def _glob_escaped(name: str) -> str:
    return re.sub(r"([*?[])", r"[\1]", name)
