"""A disk of a few megabytes that can be filled, hidden, and taken away."""

import os
import shutil
import subprocess
from pathlib import Path
from types import TracebackType

_BLOCK = bytes(1 << 16)


class SmallDisk:
    """A file system in memory, mounted for as long as the block runs.

    Args:
        path: where; made anew.
        megabytes: its size.
        names: most files and folders it holds.
    """

    def __init__(self, path: Path, megabytes: int = 96, names: int = 400) -> None:
        self.path = path
        self._options = f"size={megabytes}m,nr_inodes={names},mode=0777"
        self._mounts: list[Path] = []

    def __enter__(self) -> "SmallDisk":
        self.path.mkdir(parents=True)
        self._mount(self.path, self._options)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        while self._mounts:
            self.uncover(self._mounts[-1])

    def fill(self) -> None:
        """Leave no byte."""
        with open(self.path / "filler", "ab", buffering=0) as file:
            try:
                while file.write(_BLOCK):
                    pass
            except OSError:
                pass

    def fill_names(self) -> None:
        """Leave no room for a further file."""
        (self.path / "names").mkdir()
        try:
            for number in range(1 << 20):
                (self.path / "names" / str(number)).touch()
        except OSError:
            pass

    def empty(self) -> None:
        """Give back what was filled."""
        (self.path / "filler").unlink(missing_ok=True)
        shutil.rmtree(self.path / "names", ignore_errors=True)

    def cover(self, path: Path) -> None:
        """Put an empty file system over a folder that nothing can be written to."""
        self._mount(path, "ro,size=1m")

    def uncover(self, path: Path) -> None:
        """Take it away."""
        # Lazily: a process may have a file open there.
        subprocess.run(["umount", "-l", str(path)], check=True, capture_output=True)
        self._mounts.remove(path)

    def _mount(self, path: Path, options: str) -> None:
        command = ["mount", "-t", "tmpfs", "-o", options, "none", str(path)]
        subprocess.run(command, check=True, capture_output=True)
        self._mounts.append(path)


def can_mount(folder: Path) -> bool:
    """Whether this process may mount file systems."""
    if os.geteuid() != 0:
        return False
    try:
        with SmallDisk(folder / "probe", 1):
            return True
    except (OSError, subprocess.CalledProcessError):
        return False
