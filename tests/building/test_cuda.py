"""csrc/building/: which toolkit is taken, and what fills it up, seen on fake ones."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from csrc.building.cuda import HEADERS, CudaPlan, decide_cuda, plan_cuda
from csrc.building.toolkit import Toolkit, find_toolkit
from csrc.building.torch_packages import cuda_version_of, package_dirs

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the fake nvcc is a shell script")

FAKE = """#!/bin/sh
here={here}
for word in "$@"; do case $word in
  --version) echo "Cuda compilation tools, release {version}, V{version}.88" ;;
  --dryrun) printf '#$ _SPACE_=\\n#$ _HERE_=%s\\n#$ TOP=%s/..\\n#$ gcc -E\\n' $here $here >&2 ;;
esac; done
"""


def write_program(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


def make_headers(folder: Path, names=HEADERS) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).touch()


def make_toolkit(home: Path, names=HEADERS, version: str = "13.0", include="include") -> Path:
    """A folder whose nvcc answers as NVIDIA's does, with empty headers."""
    write_program(home / "bin" / "nvcc", FAKE.format(here=home / "bin", version=version))
    make_headers(home / include, names)
    return home


def make_packages(root: Path, names=HEADERS, version: int = 13000, folder: str = "cu13") -> Path:
    """torch's packages for CUDA, with the runtime's header that tells their version."""
    make_headers(root / folder / "include", names)
    header = root / folder / "include" / "cuda_runtime_api.h"
    header.write_text(f"/* of the runtime */\n#define CUDART_VERSION  {version}\n")
    return root


def plan_with(
    home: Path, packages: Path | None = None, torch_cuda: str | None = "13.0"
) -> CudaPlan | str:
    return plan_cuda(
        "2.14.1",
        torch_cuda,
        lambda: find_toolkit({"CUDA_HOME": str(home), "PATH": ""}),
        lambda: [] if packages is None else [packages],
    )


def found_on_path(*folders: Path) -> Path | None:
    path = os.pathsep.join([*map(str, folders), "/usr/bin", "/bin"])
    toolkit = find_toolkit({"PATH": path})
    return None if toolkit is None else toolkit.home


def test_toolkit_of_nvcc_on_path(tmp_path):
    home = make_toolkit(tmp_path / "cuda-13.0")
    assert found_on_path(home / "bin") == home
    assert find_toolkit({"PATH": f"{home}/bin:/bin"}) == Toolkit(home, (13, 0))


def test_toolkit_of_a_link_to_nvcc(tmp_path):
    home = make_toolkit(tmp_path / "cuda-13.0")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "nvcc").symlink_to(home / "bin" / "nvcc")
    assert found_on_path(tmp_path / "bin") == home


@pytest.mark.parametrize(
    "script", ['exec {nvcc} "$@"', 'echo "cached" >&2\n{nvcc} "$@"'], ids=["exec", "call"]
)
def test_toolkit_of_a_script_that_starts_nvcc(tmp_path, script):
    home = make_toolkit(tmp_path / "cuda-13.0")
    text = "#!/bin/sh\n" + script.format(nvcc=home / "bin" / "nvcc") + "\n"
    write_program(tmp_path / "usr" / "bin" / "nvcc", text)
    assert found_on_path(tmp_path / "usr" / "bin") == home


def test_toolkit_of_a_compiler_cache_named_nvcc(tmp_path):
    """ccache is linked to as nvcc, and looks for the next nvcc on PATH itself."""
    home = make_toolkit(tmp_path / "cuda-13.0")
    cache = write_program(tmp_path / "ccache", f'#!/bin/sh\nexec {home}/bin/nvcc "$@"\n')
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "nvcc").symlink_to(cache)
    assert found_on_path(tmp_path / "links", home / "bin") == home


def test_toolkit_whose_headers_are_with_the_script(tmp_path):
    """Debian has nvcc under /usr/lib, a script in /usr/bin and the headers in /usr/include."""
    inner = make_toolkit(tmp_path / "usr" / "lib" / "cuda", names=())
    write_program(tmp_path / "usr" / "bin" / "nvcc", f'#!/bin/sh\nexec {inner}/bin/nvcc "$@"\n')
    make_headers(tmp_path / "usr" / "include")
    assert found_on_path(tmp_path / "usr" / "bin") == tmp_path / "usr"


def test_toolkit_of_cuda_home_before_path_and_behind_a_script(tmp_path):
    home, other = make_toolkit(tmp_path / "a"), make_toolkit(tmp_path / "b", version="12.9")
    environ = {"CUDA_HOME": str(home), "PATH": f"{other}/bin:/bin"}
    assert find_toolkit(environ) == Toolkit(home, (13, 0))
    local = tmp_path / "local"
    write_program(local / "bin" / "nvcc", f'#!/bin/sh\nexec {home}/bin/nvcc "$@"\n')
    assert find_toolkit({"CUDA_PATH": str(local), "PATH": ""}) == Toolkit(home, (13, 0))


def test_toolkit_with_targets_alone(tmp_path):
    include = "targets/x86_64-linux/include"
    home = make_toolkit(tmp_path / "conda", include=include)
    plan = plan_with(home)
    assert isinstance(plan, CudaPlan)
    assert plan.include_dirs == (home / include,)


def test_toolkit_is_absent_where_nvcc_does_not_run(tmp_path):
    write_program(tmp_path / "bin" / "nvcc", "#!/bin/sh\nexit 1\n")
    assert find_toolkit({"CUDA_HOME": str(tmp_path), "PATH": ""}) is None
    assert "no nvcc that runs" in plan_with(tmp_path)


def test_plan_takes_a_whole_toolkit_alone(tmp_path):
    home = make_toolkit(tmp_path / "cuda")
    plan = plan_with(home, make_packages(tmp_path / "nvidia", version=12080))
    assert plan.include_dirs == (home / "include",)
    assert plan.reason == "torch has CUDA 13.0, nvcc is 13.0"


@pytest.mark.parametrize(
    ("torch_cuda", "folder", "version"), [("13.0", "cu13", 13000), ("12.8", "cusparse", 12080)]
)
def test_plan_fills_half_a_toolkit_from_torchs_packages(tmp_path, torch_cuda, folder, version):
    home = make_toolkit(tmp_path / "cuda", HEADERS[:2], version=torch_cuda)
    packages = make_packages(tmp_path / "nvidia", HEADERS[2:], version, folder)
    # Left by another torch: of a version that must not be mixed in.
    make_packages(tmp_path / "nvidia", HEADERS, 14000, "cu14")
    plan = plan_with(home, packages, torch_cuda)
    assert plan.include_dirs == (home / "include", packages / folder / "include")
    assert plan.reason.endswith("cusparse.h, cusolverDn.h from torch's packages")


def test_plan_refuses_packages_of_another_version(tmp_path):
    home = make_toolkit(tmp_path / "cuda", HEADERS[:2])
    obstacle = plan_with(home, make_packages(tmp_path / "nvidia", version=13020))
    assert "cusparse.h" in obstacle
    assert "CUDA 13.2 while torch is built for 13.0" in obstacle


def test_plan_names_a_header_that_nobody_has(tmp_path):
    home = make_toolkit(tmp_path / "cuda", HEADERS[:3])
    obstacle = plan_with(home, make_packages(tmp_path / "nvidia", HEADERS[:3]))
    assert f"{home} has no cusolverDn.h" in obstacle


def test_plan_refuses_another_major_version(tmp_path):
    assert plan_with(make_toolkit(tmp_path), None, "12.8") == (
        "nvcc is 13.0, torch is built for 12.8"
    )
    assert plan_cuda("2.13.0+cpu", None) == "torch 2.13.0+cpu has no CUDA"


def test_library_dirs_link_the_packages_runtime(tmp_path):
    home = make_toolkit(tmp_path / "cuda")
    packages = make_packages(tmp_path / "nvidia")
    library = packages / "cu13" / "lib" / "libcudart.so.13"
    library.parent.mkdir()
    library.touch()
    plan = plan_with(home, packages)
    for _ in range(2):  # a second build finds its own link
        assert plan.library_dirs(tmp_path / "lib") == [tmp_path / "lib"]
        assert (tmp_path / "lib" / "libcudart.so").resolve() == library
    (home / "lib64").mkdir()
    (home / "lib64" / "libcudart.so").touch()
    assert plan.library_dirs(tmp_path / "lib") == [home / "lib64"]


def test_package_dirs_of_cuda_12_leave_out_other_versions(tmp_path):
    for folder in ("cublas", "cuda_runtime", "cu13", "nccl"):
        (tmp_path / folder / "include").mkdir(parents=True)
    names = [path.parent.name for path in package_dirs([tmp_path], 12, "include")]
    assert names == ["cublas", "cuda_runtime", "nccl"]
    assert package_dirs([tmp_path], 13, "include") == [tmp_path / "cu13" / "include"]
    assert cuda_version_of([tmp_path]) is None


def test_decide_cuda():
    plan = CudaPlan(Toolkit(Path("/cuda"), (12, 9)), (), (), "because")
    assert decide_cuda("", False, lambda: plan) == (plan, "because")
    assert decide_cuda("1", False, lambda: plan) == (plan, "because")
    assert decide_cuda("0", False, lambda: plan) == (None, "CLIPFAST_BUILD_CUDA=0")
    assert decide_cuda("1", True, lambda: plan) == (None, "CLIPFAST_SANITIZE=1")
    assert decide_cuda("", False, lambda: "no nvcc") == (None, "no nvcc")
    with pytest.raises(SystemExit, match="CLIPFAST_BUILD_CUDA=1 was asked for, but no nvcc"):
        decide_cuda("1", False, lambda: "no nvcc")
    with pytest.raises(SystemExit, match="expected 0 or 1, got 'yes'"):
        decide_cuda("yes", False, lambda: plan)
    assert plan.default_archs() == "7.0;8.0;9.0+PTX"
