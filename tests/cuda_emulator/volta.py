"""csrc's CUDA kernels compiled for sm_70 (V100), which nvcc 13 no longer knows.

NVRTC and ptxas of CUDA 12 do: the pip packages nvidia-cuda-nvrtc-cu12, nvidia-cuda-runtime-cu12
(its headers) and nvidia-cuda-nvcc-cu12 (ptxas). NVRTC takes no host code, so launches become mere
instantiations of their kernels, and host functions are compiled as device functions.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import subprocess
from pathlib import Path

from tests.cuda_emulator import CSRC, LAUNCH, mirror

REMEDY = "needs the pip packages nvidia-cuda-{nvrtc,runtime,nvcc}-cu12"
PRELUDE = r"""
cudaError_t cudaGetLastError();
const char* cudaGetErrorString(cudaError_t);
template <typename F>
struct Instantiated {
  template <typename... A>
  void operator()(const A&...) const {}
};
template <typename F>
Instantiated<F> instantiate(F*) { return {}; }
"""
# NVRTC brings no standard library; this is what the kernels use of it.
HEADERS = {
    "string": "namespace std { struct string; }",
    "cmath": "",
    "cstring": "",
    "cstdint": "typedef signed char int8_t; typedef short int16_t; typedef int int32_t;"
    "typedef unsigned char uint8_t; typedef unsigned short uint16_t; typedef unsigned int uint32_t;"
    "typedef long int64_t; typedef unsigned long uint64_t; typedef unsigned long uintptr_t;",
    "type_traits": """
namespace std {
template <bool B, class T, class F> struct conditional { using type = T; };
template <class T, class F> struct conditional<false, T, F> { using type = F; };
template <bool B, class T, class F> using conditional_t = typename conditional<B, T, F>::type;
template <class A, class B> constexpr bool is_same_v = false;
template <class A> constexpr bool is_same_v<A, A> = true;
template <class T, T V> struct integral_constant { static constexpr T value = V; };
}
""",
}


def find_part(package: str, path: str) -> Path | None:
    """A file of the pip package nvidia.<package>, or None."""
    try:
        spec = importlib.util.find_spec(f"nvidia.{package}")
    except ModuleNotFoundError:
        return None
    for folder in (spec.submodule_search_locations or []) if spec else []:
        if Path(folder, path).exists():
            return Path(folder, path)
    return None


def parts() -> tuple[Path, Path, Path] | None:
    """(libnvrtc, cuda_fp16.h's folder, ptxas), or None where one of them is missing."""
    nvrtc = find_part("cuda_nvrtc", "lib/libnvrtc.so.12")
    headers = find_part("cuda_runtime", "include/cuda_fp16.h")
    ptxas = find_part("cuda_nvcc", "bin/ptxas")
    if nvrtc is None or headers is None or ptxas is None:
        return None
    return nvrtc, headers.parent, ptxas


def compile_to_ptx(source: Path, folder: Path) -> str:
    nvrtc_path, headers, _ = parts()
    nvrtc = ctypes.CDLL(str(nvrtc_path))
    rewritten = mirror(folder, lambda text: LAUNCH.sub(r"instantiate(&\1)(", text))
    source = rewritten / source.relative_to(CSRC)
    text = PRELUDE + source.read_text()
    options = ["--gpu-architecture=compute_70", "-std=c++17", "-default-device", f"-I{headers}"]
    options += [f"-I{rewritten}", f"-I{source.parent}"]
    program, size = ctypes.c_void_p(), ctypes.c_size_t()

    def strings(values):
        return (ctypes.c_char_p * len(values))(*(value.encode() for value in values))

    def read(get_size, get):
        get_size(program, ctypes.byref(size))
        buffer = ctypes.create_string_buffer(size.value)
        get(program, buffer)
        return buffer.value.decode()

    made = nvrtc.nvrtcCreateProgram(
        *(ctypes.byref(program), text.encode(), source.name.encode(), len(HEADERS)),
        *(strings(HEADERS.values()), strings(HEADERS.keys())),
    )
    assert made == 0
    done = nvrtc.nvrtcCompileProgram(program, len(options), strings(options))
    assert done == 0, read(nvrtc.nvrtcGetProgramLogSize, nvrtc.nvrtcGetProgramLog)
    return read(nvrtc.nvrtcGetPTXSize, nvrtc.nvrtcGetPTX)


def assemble(ptx: str, folder: Path) -> str:
    """What `ptxas -v` says of each kernel for sm_70."""
    path = folder / "kernel.ptx"
    path.write_text(ptx)
    command = [str(parts()[2]), "-v", "-arch=sm_70", str(path), "-o", os.devnull]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stderr
