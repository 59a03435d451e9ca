"""csrc's CUDA operators on the CPU: real kernels and real host code, over emulated hardware.

:func:`load` compiles `csrc/**/*_kernel.cu` with g++ (emulator.h plays CUDA's part) together with
the host code that launches them (`stubs/` plays torch's CUDA part and cuBLAS's), and registers them
as torch.ops.clipfast_emulated.*, which take CPU tensors. It shows that indices, sums, barriers and
the order of chunks are right; not what a GPU's memory model or speed adds.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

HERE = Path(__file__).resolve().parent
CSRC = HERE.parents[1] / "csrc"
KERNELS = [
    "normalize/normalize_kernel.cu",
    "contrastive/cuda/softmax_kernel.cu",
    "contrastive/cuda/rows_kernel.cu",
]
ADAMW_KERNELS = ["adamw/cuda/adamw_kernel.cu", "adamw/cuda/adamw_norm_kernel.cu"]
# Of another rule for a logit, in csrc's walks.
SIGMOID_SCHEMA = (
    "(Tensor x, Tensor y, Tensor row_factor, Tensor column_factor, Tensor scale, Tensor bound, "
    "int first_column, int workspace_bytes) -> (Tensor, Tensor)"
)
SWITCHES = [
    *("-std=c++20", "-O1", "-fPIC", "-DCLIPFAST_CUDA", "-Wno-attributes"),
    # What torch's build passes to nvcc as well.
    *(f"-D__CUDA_NO_{name}__" for name in ("HALF_OPERATORS", "HALF_CONVERSIONS")),
    *("-D__CUDA_NO_BFLOAT16_CONVERSIONS__", "-D__CUDA_NO_HALF2_OPERATORS__"),
]
LAUNCH = re.compile(r"(\w+(?:<[^<>;(){}]*>)?)\s*<<<(.*?)>>>\s*\(", re.DOTALL)


def find_cuda_headers() -> Path | None:
    """The folder of cuda_fp16.h, by way of nvcc, which may be a script far from its toolkit."""
    if shutil.which("nvcc") is None:
        return None
    command = ["nvcc", "--dryrun", "-x", "cu", "-c", os.devnull, "-o", os.devnull]
    words = subprocess.run(command, capture_output=True, text=True).stderr
    for folder in re.findall(r'-I"?([^"\s]+)', words):
        if Path(folder, "cuda_fp16.h").exists():
            return Path(folder).resolve()
    return None


def obstacle() -> str | None:
    """Why the emulator cannot be built here, or None."""
    if not sys.platform.startswith("linux"):
        return "the CUDA emulator needs Linux"
    if shutil.which("g++") is None:
        return "g++ is not on PATH"
    if find_cuda_headers() is None:
        return "no CUDA headers were found through nvcc"
    return None


def rewrite_launches(source: str) -> str:
    """kernel<<<shape>>>(arguments) as a call that g++ understands."""
    return LAUNCH.sub(
        r"emulator::launch(emulator::Shape{\2}, [&](const auto&... a) { \1(a...); })(", source
    )


def mirror(folder: Path, rewrite: Callable[[str], str]) -> Path:
    """Copies csrc's kernels and headers into `folder`, as rewrite(text) where CUDA code is.

    Kernels are compiled from there, since a launch may stand in a header too.
    """
    for path in CSRC.rglob("*"):
        if path.suffix in (".cu", ".cuh", ".h"):
            target = folder / path.relative_to(CSRC)
            target.parent.mkdir(parents=True, exist_ok=True)
            text = path.read_text()
            target.write_text(text if path.suffix == ".h" else rewrite(text))
    return folder


def load(build: Path, extra: tuple[str, ...] = ()) -> Path:
    """Compiles into `build`, and registers torch.ops.clipfast_emulated.*; once per process.

    Returns:
        The library.
    """
    library = build / "clipfast_emulated.so"
    if "_definitions" in globals():
        return library
    from torch.utils.cpp_extension import include_paths, library_paths

    # Importing an operator's room declares it.
    from clipfast.ops import adamw, contrastive  # noqa: F401
    from clipfast.ops.registry import OPERATORS, Compiled

    cuda = find_cuda_headers()
    rewritten = mirror(build / "csrc", rewrite_launches)
    includes = [HERE, HERE / "stubs"]
    flags = [*SWITCHES, *extra, *(f"-I{path}" for path in includes), "-isystem", str(cuda)]
    torch_flags = [f"-I{CSRC}"]
    torch_flags += [flag for path in include_paths() for flag in ("-isystem", path)]
    torch_flags.append(f"-D_GLIBCXX_USE_CXX11_ABI={int(torch._C._GLIBCXX_USE_CXX11_ABI)}")
    # Longest first.
    sources = {"host": HERE / "host.cpp", "emulator": HERE / "emulator.cpp"}
    jobs = {"host": torch_flags, "emulator": []}
    kernels = [rewritten / kernel for kernel in (*KERNELS, *ADAMW_KERNELS)]
    for path in (*kernels, HERE / "sigmoid_kernel.cu"):
        sources[path.stem] = path
        jobs[path.stem] = ["-include", "emulator.h", f"-I{rewritten}", "-x", "c++"]

    def compile_one(name: str) -> Path:
        out = build / f"{name}.o"
        run(["g++", *flags, *jobs[name], "-c", str(sources[name]), "-o", str(out)])
        return out

    with ThreadPoolExecutor(2) as pool:
        objects = list(pool.map(compile_one, jobs))
    search = [flag for path in library_paths() for flag in (f"-L{path}", f"-Wl,-rpath,{path}")]
    libraries = ["-lc10", "-ltorch_cpu", "-ltorch"]
    # Beside a CUDA build of torch and of clipfast._C there are real functions of the same names.
    # The emulated ones call each other, since no name is open to be taken by another library, and
    # none is looked for elsewhere, since the linker wants each other name from torch or the system.
    names = build / "names.map"
    names.write_text("{ local: *; };\n")
    link = ["g++", "-shared", f"-Wl,--version-script={names}", "-Wl,-z,defs", *extra]
    run([*link, *map(str, objects), *search, *libraries, "-o", str(library)])
    torch.ops.load_library(str(library))
    definitions = torch.library.Library("clipfast_emulated", "DEF")
    for name, operator in OPERATORS.items():
        if Compiled("cuda") in operator.forms:
            definitions.define(name + operator.schema)
    for name in ("sigmoid_sums", "sigmoid_gradients"):
        definitions.define(name + SIGMOID_SCHEMA)
    # The definitions last as long as the object.
    globals()["_definitions"] = definitions
    return library


def run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}\n{done.stderr[-4000:]}")
