"""Files that stand whole, with their bytes on the disk, or not at all.

Whatever is written under a final name is written beside it first, synced, renamed over it, and its
folder synced. After a crash, of the process or of the machine, the name holds what was there before
or all of what is new.
"""

import errno
import os
import re
import shutil
import socket
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

# pid and host, so that what a killed process left can be told from what another one is writing.
_TEMPORARY = re.compile(r"\.(?P<name>.+)\.(?P<pid>\d+)@(?P<host>[^/@]+)\.tmp")


@contextmanager
def whole_file(
    path: str | os.PathLike[str], *, sync: bool = True, clean: bool = True
) -> Iterator[Path]:
    """A temporary name to write to, put in place of ``path`` where the block ends well.

    Temporaries of the same file that killed processes of this machine left are deleted. The file's
    mode is what the umask says, whatever the writer gave it.

    Args:
        path: the final name.
        sync: wait until file and folder are on the disk.
        clean: look for such temporaries, which lists the folder. Whoever writes many files into one
            folder calls ``remove_stale_in`` once instead.

    Yields:
        The name to write to; an empty file is there.

    Raises:
        OSError: it cannot be written, with what ``explain`` says; nothing is left of it, and
            ``path`` holds what it held.
    """
    path = Path(path)
    if clean:
        remove_stale(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}@{socket.gethostname()}.tmp")
    try:
        temporary.write_bytes(b"")
        mode = temporary.stat().st_mode & 0o777
        yield temporary
        with suppress(PermissionError):
            temporary.chmod(mode)
        if sync:
            sync_path(temporary)
        os.replace(temporary, path)
        if sync:
            sync_path(path.parent)
    except BaseException as error:
        # Before the temporary's bytes are given back, and would count as free.
        named = _named(error, temporary, path)
        with suppress(OSError):
            temporary.unlink()
        if named is error:
            raise
        raise named from error


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


def append(path: str | os.PathLike[str], text: str) -> None:
    """Add to a file, which is made where there is none. A link is not followed: in a folder that
    came from elsewhere it could lead to any file.

    Args:
        path: of a plain file.
        text: to add.

    Raises:
        OSError: it is a link, or cannot be written.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
    with open(os.open(path, flags, 0o666), "a") as file:
        file.write(text)


def sync_path(path: str | os.PathLike[str]) -> None:
    """Wait until a file's bytes, or a folder's names, are on the disk.

    Raises:
        OSError: they could not be written.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some network file systems have no such call for folders.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP) or not os.path.isdir(path):
            raise
    finally:
        os.close(descriptor)


def _named(error: BaseException, temporary: Path, path: Path) -> BaseException:
    """The same error under the file's final name, where it is about this file."""
    if not isinstance(error, OSError) or error.errno is None:
        return error
    if error.filename is None or Path(error.filename) in (temporary, path, path.parent):
        return OSError(error.errno, explain(error, path))
    return error


def remove_stale(path: str | os.PathLike[str]) -> list[Path]:
    """Delete the temporaries of a file whose writers are dead.

    Args:
        path: a final name; the temporaries lie beside it.

    Returns:
        What was deleted.
    """
    path = Path(path)
    pattern = f".{_glob_escaped(path.name)}.*.tmp"
    return _remove(t for t in path.parent.glob(pattern) if _name_of(t) == path.name)


def remove_stale_in(folder: str | os.PathLike[str]) -> list[Path]:
    """Delete the temporaries of all files of a folder whose writers are dead.

    Args:
        folder: it is listed once; folders in it are not looked at.

    Returns:
        What was deleted.
    """
    return _remove(t for t in Path(folder).glob(".*.tmp") if _name_of(t))


def _name_of(temporary: Path) -> str | None:
    """The final name of a temporary whose writer is dead; None of every other file."""
    found = _TEMPORARY.fullmatch(temporary.name)
    if found is None or _may_be_alive(found["pid"], found["host"]):
        return None
    return found["name"]


def _remove(temporaries: Iterable[Path]) -> list[Path]:
    removed = []
    for temporary in list(temporaries):
        with suppress(OSError):
            temporary.unlink()
            removed.append(temporary)
    return removed


def explain(error: OSError, path: str | os.PathLike[str]) -> str:
    """What went wrong with a file, for a person: its path, the reason, the space that is left.

    Args:
        error: what the system said.
        path: what was to be written or read; it need not exist.

    Returns:
        One line, such as "/runs/a/final.safetensors: No space left on device; 1.2 MB free on that
        file system".
    """
    reason = error.strerror or str(error) or type(error).__name__
    if reason.startswith(f"{os.fspath(path)}: "):
        return reason
    return "; ".join([f"{os.fspath(path)}: {reason}", *_remains(error, path)])


def free_bytes(path: str | os.PathLike[str]) -> int | None:
    """Bytes that this user may still write on the file system of a path.

    Args:
        path: a file or folder; where there is none, the nearest folder above it is asked.

    Returns:
        The bytes; None where they cannot be known.
    """
    try:
        return shutil.disk_usage(_nearest_folder(path)).free
    except OSError:
        return None


def _remains(error: OSError, path: str | os.PathLike[str]) -> Iterator[str]:
    if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.EFBIG):
        return
    free = free_bytes(path)
    if free is not None:
        yield f"{_size(free)} free on that file system"
    with suppress(OSError):
        found = os.statvfs(_nearest_folder(path))
        # A file system can run out of files before it runs out of bytes.
        if error.errno == errno.ENOSPC and found.f_files and not found.f_favail:
            yield "no further file fits on it: delete files there"
    if error.errno == errno.EDQUOT:
        yield "a quota may be lower than that"


def _nearest_folder(path: str | os.PathLike[str]) -> Path:
    path = Path(path).absolute()
    return next((p for p in (path, *path.parents) if p.is_dir()), Path("/"))


def _size(count: float) -> str:
    for unit in ("bytes", "KB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def process_is_alive(pid: int) -> bool:
    """Whether a process of this number runs on this machine; one that is dead and not yet collected
    by its parent does not."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    with suppress(OSError, IndexError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    return True


def _may_be_alive(pid: str, host: str) -> bool:
    # Another machine's processes cannot be seen from here.
    return host != socket.gethostname() or process_is_alive(int(pid))


def _glob_escaped(name: str) -> str:
    return re.sub(r"([*?[])", r"[\1]", name)
