"""Whether csrc's CUDA half is built, and with which headers and libraries."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

from csrc.building.toolkit import Toolkit, find_toolkit, first_with
from csrc.building.torch_packages import cuda_version_of, link_runtime, package_dirs, package_roots

# What torch's own headers include of CUDA.
HEADERS = ("cuda_runtime.h", "cublas_v2.h", "cusparse.h", "cusolverDn.h")


@dataclasses.dataclass(frozen=True)
class CudaPlan:
    """What the CUDA half is compiled with.

    Attributes:
        toolkit: nvcc's.
        include_dirs: to look in after the toolkit's own include folder.
        package_libraries: library folders of torch's packages.
        reason: why it is built, in words.
    """

    toolkit: Toolkit
    include_dirs: tuple[Path, ...]
    package_libraries: tuple[Path, ...]
    reason: str

    def library_dirs(self, scratch: Path) -> list[Path]:
        """Folders in which the linker finds libcudart.so.

        Args:
            scratch: where a link may be made that bears this name.
        """
        own = self.toolkit.library_dirs()
        if first_with("libcudart.so", own):
            return own
        linked = link_runtime([*own, *self.package_libraries], scratch)
        return own if linked is None else [*own, linked]

    def default_archs(self) -> str:
        """GPU architectures: V100 (while nvcc knows it), A100, H100."""
        oldest = "7.5" if self.toolkit.version >= (13, 0) else "7.0"
        return f"{oldest};8.0;9.0+PTX"


def plan_cuda(
    torch_version: str,
    torch_cuda: str | None,
    find: Callable[[], Toolkit | None] = find_toolkit,
    roots: Callable[[], list[Path]] = package_roots,
) -> CudaPlan | str:
    """What to compile the CUDA half with.

    The toolkit's headers come first. Those that it lacks are taken from torch's own packages, if
    these are of the CUDA version that torch was built for.

    Args:
        torch_version: torch.__version__.
        torch_cuda: torch.version.cuda.
        find: how the toolkit is found.
        roots: where torch's packages are.

    Returns:
        The plan; or, in words, why the CUDA half cannot be built.
    """
    if torch_cuda is None:
        return f"torch {torch_version} has no CUDA"
    toolkit = find()
    if toolkit is None:
        return "no nvcc that runs was found (put it on PATH, or set CUDA_HOME)"
    wanted = tuple(int(number) for number in torch_cuda.split(".")[:2])
    version = "{}.{}".format(*toolkit.version)
    if toolkit.version[0] != wanted[0]:
        return f"nvcc is {version}, torch is built for {torch_cuda}"
    own = toolkit.include_dirs()
    reason = f"torch has CUDA {torch_cuda}, nvcc is {version}"
    lacking = [name for name in HEADERS if first_with(name, own) is None]
    libraries = package_dirs(roots(), wanted[0], "lib")
    if not lacking:
        return CudaPlan(toolkit, tuple(own), tuple(libraries), reason)
    packages = package_dirs(roots(), wanted[0], "include")
    absent = [name for name in lacking if first_with(name, packages) is None]
    if absent:
        return (
            f"{toolkit.home} has no {absent[0]}, and no package of torch has it (install the rest "
            f"of the toolkit, or set CUDA_HOME to a whole one)"
        )
    held = cuda_version_of(packages)
    if held != wanted:
        found = "no version" if held is None else "CUDA {}.{}".format(*held)
        return (
            f"{toolkit.home} has no {lacking[0]}, and the headers in {packages[0]} are of {found} "
            f"while torch is built for {torch_cuda} (install the rest of the toolkit, or set "
            f"CUDA_HOME to a whole one)"
        )
    reason += f", {', '.join(lacking)} from torch's packages"
    return CudaPlan(toolkit, (*own, *packages), tuple(libraries), reason)


def decide_cuda(
    wish: str, sanitized: bool, plan: Callable[[], CudaPlan | str]
) -> tuple[CudaPlan | None, str]:
    """Whether to build the CUDA operators.

    Args:
        wish: CLIPFAST_BUILD_CUDA: "0", "1" or "" for where it can be done.
        sanitized: the CPU half is built for `make sanitize`, and nothing else.
        plan: how it would be done.

    Returns:
        The plan, or None; and the reason in words.

    Raises:
        SystemExit: another wish, or one that cannot be met.
    """
    if wish not in ("", "0", "1"):
        raise SystemExit(f"CLIPFAST_BUILD_CUDA: expected 0 or 1, got {wish!r}")
    if sanitized or wish == "0":
        return None, "CLIPFAST_SANITIZE=1" if sanitized else "CLIPFAST_BUILD_CUDA=0"
    found = plan()
    if isinstance(found, CudaPlan):
        return found, found.reason
    if wish == "1":
        raise SystemExit(f"CLIPFAST_BUILD_CUDA=1 was asked for, but {found}")
    return None, found
