"""CUDA's headers and runtime library in the packages that torch itself is installed with.

torch's own headers include those of cuBLAS, cuSPARSE and cuSOLVER. A toolkit of nvcc alone lacks
them, and torch's packages for CUDA 13 (nvidia/cu13) and 12 (nvidia/cublas, ...) have them.
"""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path


def package_roots() -> list[Path]:
    """The folders named "nvidia" of this environment; packages of several places may share it."""
    spec = importlib.util.find_spec("nvidia")
    places = spec.submodule_search_locations if spec is not None else None
    return [Path(place) for place in places or ()]


def package_dirs(roots: list[Path], major: int, name: str) -> list[Path]:
    """The packages' folders of one name.

    Args:
        roots: of `package_roots`.
        major: of torch's CUDA version; from 13 on one folder holds everything.
        name: "include" or "lib".

    Returns:
        Those that exist.
    """
    found = [folder for root in roots for folder in sorted(root.glob(f"*/{name}"))]
    if major >= 13:
        return [folder for folder in found if folder.parent.name == f"cu{major}"]
    return [folder for folder in found if not re.fullmatch(r"cu\d+", folder.parent.name)]


def cuda_version_of(include_dirs: list[Path]) -> tuple[int, int] | None:
    """The CUDA version, (major, minor), whose runtime's header lies in one of the folders."""
    for folder in include_dirs:
        header = folder / "cuda_runtime_api.h"
        if header.exists():
            match = re.search(
                r"#define\s+CUDART_VERSION\s+(\d+)", header.read_text("utf-8", "replace")
            )
            if match:
                return int(match[1]) // 1000, int(match[1]) % 1000 // 10
    return None


def link_runtime(library_dirs: list[Path], into: Path) -> Path | None:
    """A folder with libcudart.so, the name that the linker asks for.

    The packages have the library under its versioned name alone.

    Args:
        library_dirs: of the packages.
        into: where to make the link.

    Returns:
        `into`, or None where no package has the library.
    """
    found = [path for folder in library_dirs for path in sorted(folder.glob("libcudart.so*"))]
    if not found:
        return None
    into.mkdir(parents=True, exist_ok=True)
    link = into / "libcudart.so"
    link.unlink(missing_ok=True)
    link.symlink_to(found[-1])
    return into
