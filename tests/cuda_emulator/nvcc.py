"""csrc's CUDA kernels compiled by nvcc for every GPU that it knows of those we name."""

from __future__ import annotations

import subprocess
from pathlib import Path

from tests.cuda_emulator import CSRC, SWITCHES


def assemble(source: Path, folder: Path) -> tuple[str, int]:
    """What ptxas reports of a source's kernels, and for how many architectures it was asked."""
    listed = subprocess.run(["nvcc", "--list-gpu-arch"], capture_output=True, text=True).stdout
    archs = [a for a in (70, 75, 80, 90) if f"compute_{a}" in listed]
    assert archs
    switches = [s for s in SWITCHES if s.startswith("-D__CUDA_NO")]
    codes = [f"-gencode=arch=compute_{a},code=sm_{a}" for a in archs]
    done = subprocess.run(
        [
            *("nvcc", "-std=c++17", "-O3", "--threads", "2", "-Xptxas", "-v", *switches, *codes),
            *(f"-I{CSRC}", "-c", str(source), "-o", str(folder / "kernel.o")),
        ],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stderr, len(archs)
