"""The CUDA toolkit here: where nvcc belongs, and where its headers and libraries are."""

from __future__ import annotations

import dataclasses
import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

RUNTIME_HEADER = "cuda_runtime.h"


@dataclasses.dataclass(frozen=True)
class Toolkit:
    """A toolkit with an nvcc that runs.

    Attributes:
        home: what CUDA_HOME should be: its bin/nvcc is the compiler.
        version: of nvcc, (major, minor).
    """

    home: Path
    version: tuple[int, int]

    def include_dirs(self) -> list[Path]:
        """Folders of its headers: conda's packages have them under targets/ alone."""
        return _existing([self.home / "include", *sorted(self.home.glob("targets/*/include"))])

    def library_dirs(self) -> list[Path]:
        """Folders of its libraries."""
        here = [self.home / "lib64", self.home / "lib"]
        return _existing([*here, *sorted(self.home.glob("targets/*/lib"))])


def find_toolkit(environ: Mapping[str, str] | None = None) -> Toolkit | None:
    """The toolkit of CUDA_HOME or CUDA_PATH, else of the nvcc on PATH, else /usr/local/cuda.

    An nvcc on PATH may be a link, a script that starts another, or a compiler cache under its name.
    So nvcc itself is asked where it lies. The folder above it counts where that answer is none, or
    where the headers are with it, as in Debian's /usr.

    Args:
        environ: the environment; os.environ where None.

    Returns:
        The toolkit, or None where there is no nvcc that runs.
    """
    environ = os.environ if environ is None else environ
    given = environ.get("CUDA_HOME") or environ.get("CUDA_PATH")
    on_path = shutil.which("nvcc", path=environ.get("PATH", os.defpath))
    if given:
        nvcc = Path(given, "bin", "nvcc")
        homes = [nvcc.parents[1], *_homes_behind(nvcc)]
    elif on_path:
        nvcc = Path(on_path).absolute()
        homes = [*_homes_behind(nvcc), nvcc.parents[1]]
    else:
        homes = [Path("/usr/local/cuda")]
    found = [
        Toolkit(home, version)
        for home in dict.fromkeys(homes)
        if (version := nvcc_version(home / "bin" / "nvcc")) is not None
    ]
    whole = [kit for kit in found if first_with(RUNTIME_HEADER, kit.include_dirs())]
    return next(iter([*whole, *found]), None)


def nvcc_version(nvcc: Path) -> tuple[int, int] | None:
    """The (major, minor) version that an nvcc tells, or None where it does not run."""
    match = re.search(r"release (\d+)\.(\d+)", _output_of([str(nvcc), "--version"]))
    return (int(match[1]), int(match[2])) if match else None


def first_with(name: str, folders: list[Path]) -> Path | None:
    """The first of the folders that has a file of this name."""
    return next((folder for folder in folders if (folder / name).exists()), None)


def _homes_behind(nvcc: Path) -> Iterator[Path]:
    # Only shown, not run: nvcc prints the folder it works from, whoever has started it.
    words = _output_of([str(nvcc), "--dryrun", "-x", "cu", "-c", os.devnull, "-o", os.devnull])
    for name in ("TOP", "_HERE_"):
        match = re.search(rf"^#\$ {name}=(.+)$", words, re.MULTILINE)
        if match:
            home = Path(match[1].strip().strip('"'))
            yield (home if name == "TOP" else home.parent).resolve()
    yield nvcc.resolve().parents[1]


def _output_of(command: list[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout + done.stderr


def _existing(folders: list[Path]) -> list[Path]:
    return [folder for folder in folders if folder.is_dir()]
