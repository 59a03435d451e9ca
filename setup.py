"""Builds clipfast: the Python package, `kernels/` as clipfast.kernels, and `csrc/` as clipfast._C.

`pip install -e . --no-build-isolation` builds against the torch of the active environment. The
extension always has its CPU operators, compiled once per vector capability and chosen at run time.
CUDA operators are added where torch has CUDA and its nvcc is found; `csrc/building/` says how.

CLIPFAST_BUILD_CUDA=0/1      leave CUDA out / fail when it cannot be built
CUDA_HOME                    the toolkit to build with; else that of the nvcc on PATH
CLIPFAST_SANITIZE=1          the CPU operators under AddressSanitizer and UBSan (`make sanitize`)
TORCH_CUDA_ARCH_LIST="8.0"   the GPU architectures to compile for
MAX_JOBS=N                   compiler processes at a time
"""

from __future__ import annotations

import json
import os
import platform
import re
import sys
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT))  # which pip's builds leave out

from csrc.building.cuda import decide_cuda, plan_cuda  # noqa: E402
from csrc.building.one_pass import OnePass  # noqa: E402

try:
    import torch
except ImportError as error:
    raise SystemExit(
        "clipfast is compiled against the torch that it will run with: install torch first, then "
        f"`pip install -e . --no-build-isolation` ({error})"
    ) from error

SANITIZED = os.environ.get("CLIPFAST_SANITIZE") == "1"
CUDA, CUDA_REASON = decide_cuda(
    os.environ.get("CLIPFAST_BUILD_CUDA", ""),
    SANITIZED,
    lambda: plan_cuda(torch.__version__, torch.version.cuda),
)
if CUDA is not None:
    # torch's build reads these: the first as it is imported.
    os.environ["CUDA_HOME"] = str(CUDA.toolkit.home)
    os.environ["TORCH_CUDA_ARCH_LIST"] = (
        os.environ.get("TORCH_CUDA_ARCH_LIST") or CUDA.default_archs()
    )
CUDA_ARCHS = os.environ["TORCH_CUDA_ARCH_LIST"] if CUDA is not None else ""

from torch.utils import cpp_extension  # noqa: E402

IS_X86 = platform.machine() in ("x86_64", "AMD64")

# The order is the link order, and it matters: csrc/common/cpu_dispatch.h says why.
CPU_CAPABILITIES = {"DEFAULT": []}
if IS_X86:
    CPU_CAPABILITIES["AVX2"] = ["-mavx2", "-mfma", "-mf16c"]
    CPU_CAPABILITIES["AVX512"] = [
        *("-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq"),
        *("-mavx2", "-mfma", "-mf16c"),
    ]

CXX_FLAGS = ["-O3", "-g0", "-fvisibility=hidden", "-fvisibility-inlines-hidden"]
# What GCC says of ATen's vector headers and of its own is not ours to mend.
CXX_FLAGS += ["-Wall", "-Wno-unknown-pragmas", "-Wno-maybe-uninitialized"]
if sys.platform.startswith("linux"):
    CXX_FLAGS.append("-fopenmp")
SANITIZERS = ["-fsanitize=address,undefined"] if SANITIZED else []
if SANITIZED:
    # torch is built without the types' information that "vptr" looks at.
    CXX_FLAGS += [*SANITIZERS, "-fno-sanitize=vptr", "-fno-omit-frame-pointer", "-O1", "-g1"]

TRAIN = [
    "deepspeed>=0.19",
    "tokenizers",
    "ftfy",
    "tyro",
    "tqdm",
    "tensorboard",
    "matplotlib",
    "safetensors",
    "pillow",
    "webdataset",
]
ON_LINUX = '; platform_system == "Linux"'
EXTRAS = {
    "train": [*TRAIN, "nvidia-dali-cuda130" + ON_LINUX],
    "train-cuda12": [*TRAIN, "nvidia-dali-cuda120" + ON_LINUX],
    # From huggingface-hub on: what open_clip_torch and timm import. Those two are installed with
    # --no-deps, since their own requirements may replace the torch that is here.
    "dev": [
        # pytest-xdist 3.8 cannot keep a group of tests together under pytest 9.1 and newer.
        *("pytest<9.1", "pytest-xdist>=3.8", "hypothesis", "scikit-learn", "regex"),
        *("ruff>=0.17,<0.18", "clang-format==23.*", "mypy>=2.4,<2.5"),
        *("huggingface-hub", "ftfy", "tqdm", "safetensors", "pyyaml"),
        # Stores, and a server of S3's protocol for their tests.
        *("obstore>=0.12", "moto[s3]", "flask", "flask-cors"),
        # Parquet: selections. Neighbours: near duplicates; their groups need scipy.
        *("pyarrow", "faiss-cpu", "scipy"),
        # The types of Kubernetes' kinds, which the manifest in recipes/launch is checked by.
        "kubeflow-trainer-api",
    ],
    # Tables of `python -m clipfast.curate`.
    "curate": ["pyarrow", "faiss-cpu", "scipy", "matplotlib"],
    # Shards in stores and on web servers: s3, gs, az, http.
    "stores": ["obstore>=0.12"],
    # Coverage-guided fuzzing of the tar walk and the index; wheels for Linux alone.
    "fuzz": ["atheris" + ON_LINUX],
    # The site. Only `make docs` installs it, from the same line in the Makefile.
    "docs": ["mkdocs>=1.6,<2", "mkdocs-material>=9.7,<10", "mkdocstrings[python]>=1.0,<2"],
}


def sources(pattern: str) -> list[str]:
    return sorted(p.relative_to(ROOT).as_posix() for p in (ROOT / "csrc").rglob(pattern))


def make_extension():
    """clipfast._C without its CPU kernels, which BuildClipfast adds as objects."""
    import pybind11

    kernels = set(sources("*_cpu_kernel.cpp"))
    cpp = [path for path in sources("*.cpp") if path not in kernels]
    kind = cpp_extension.CppExtension if CUDA is None else cpp_extension.CUDAExtension
    extension = kind(
        "clipfast._C",
        cpp + (sources("*_kernel.cu") if CUDA is not None else []),
        include_dirs=[str(ROOT / "csrc"), pybind11.get_include()],
        define_macros=[("CLIPFAST_CUDA", "1")] if CUDA is not None else [],
        extra_compile_args={"cxx": CXX_FLAGS, "nvcc": ["-O3"]},
        extra_link_args=(["-fopenmp"] if "-fopenmp" in CXX_FLAGS else []) + SANITIZERS,
        # A header that changes must also make setuptools look at the extension again.
        depends=[*sources("*.h"), *sources("*.cuh"), *kernels, "setup.py"],
    )
    if CUDA is not None:
        extension.include_dirs += [
            path for path in map(str, CUDA.include_dirs) if path not in extension.include_dirs
        ]
    return extension


class BuildClipfast(cpp_extension.BuildExtension):
    """Compiles each `*_cpu_kernel.cpp` once per capability, and says what was built.

    Flags belong to a whole extension in torch's build, so each capability takes a call of the
    compiler of its own. `OnePass` has them run together with the extension's other sources.
    """

    def finalize_options(self) -> None:
        super().finalize_options()
        # An editable install would build in a throw-away folder and compile everything each time.
        python = f"cpython-{sys.version_info.major}{sys.version_info.minor}"
        kind = "sanitized" if SANITIZED else "temp"
        self.build_temp = str(Path("build", f"{kind}-{python}-torch{torch.__version__}"))

    def build_extension(self, ext) -> None:
        build_temp = (ROOT / self.build_temp).resolve()
        info = self.write_build_info(build_temp)
        ext.include_dirs.insert(0, str(build_temp / "include"))
        if CUDA is not None:
            ext.library_dirs += map(str, CUDA.library_dirs(build_temp / "lib"))
        one_pass = OnePass(cpp_extension, build_temp / "all")
        with one_pass.collect():
            for capability, flags in CPU_CAPABILITIES.items():
                defines = [f"-DCPU_CAPABILITY={capability}", f"-DCPU_CAPABILITY_{capability}"]
                ext.extra_objects += self.compiler.compile(
                    sources("*_cpu_kernel.cpp"),
                    output_dir=str(build_temp / f"cpu-{capability.lower()}"),
                    include_dirs=ext.include_dirs,
                    extra_postargs={"cxx": [*CXX_FLAGS, *flags, *defines]},
                )
        with one_pass.run():
            super().build_extension(ext)
        print(f"clipfast._C: built {json.dumps(info)}", flush=True)

    def write_build_info(self, build_temp: Path) -> dict[str, object]:
        info = {
            "torch": torch.__version__,
            "cpu_capabilities": [name.lower() for name in CPU_CAPABILITIES],
            "cuda": CUDA is not None,
            "cuda_reason": CUDA_REASON,
            "cuda_archs": CUDA_ARCHS,
        }
        text = f'#pragma once\n#define CLIPFAST_BUILD_INFO R"json({json.dumps(info)})json"\n'
        header = build_temp / "include" / "clipfast_build_info.h"
        header.parent.mkdir(parents=True, exist_ok=True)
        # Written only when it differs: ninja goes by the time of the last change.
        if not header.exists() or header.read_text() != text:
            header.write_text(text)
        return info


def read_version() -> str:
    text = (ROOT / "clipfast" / "__init__.py").read_text()
    return re.search(r'^__version__ = "(.+)"$', text, re.MULTILINE)[1]


os.chdir(ROOT)
PACKAGES = find_packages(include=["clipfast", "clipfast.*"])
PACKAGES += ["clipfast.kernels", *(f"clipfast.kernels.{name}" for name in find_packages("kernels"))]
PACKAGE_DATA = {
    "clipfast": [
        "assets/**/*",
        "data/sample/**/*",
        "eval/sets/words/**/*",
        "eval/robustness/mappings/*",
        "eval/report/assets/*",
    ]
}

if __name__ == "__main__":
    setup(
        name="clipfast",
        version=read_version(),
        description="A low-level, performance-first training engine for CLIP",
        license="MIT",
        python_requires=">=3.10",
        packages=PACKAGES,
        package_dir={"clipfast.kernels": "kernels"},
        package_data=PACKAGE_DATA,
        install_requires=[
            "torch>=2.11",
            "numpy",
            "triton>=3.6" + ON_LINUX,
            "ninja",
            "pybind11",
        ],
        extras_require=EXTRAS,
        ext_modules=[make_extension()],
        cmdclass={"build_ext": BuildClipfast},
        zip_safe=False,
    )
