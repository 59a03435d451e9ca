"""csrc's CUDA kernels compiled by nvcc for every GPU that it knows of those we name."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.cuda_emulator import CSRC, SWITCHES

# Compiling is nearly all that a test does: the newest we name, and with --thorough the others.
newest_and_others = pytest.mark.parametrize(
    "archs",
    [
        pytest.param((90,), id="sm_90"),
        pytest.param((70, 75, 80), id="sm_70 to sm_80", marks=pytest.mark.thorough),
    ],
)


def assemble(source: Path, folder: Path, archs: Sequence[int]) -> tuple[str, int]:
    """What ptxas reports of a source's kernels, and for how many architectures it was asked.

    Args:
        source: to compile.
        folder: for what is made.
        archs: compute capabilities, as 90; those that this nvcc does not know are left out.
    """
    listed = subprocess.run(["nvcc", "--list-gpu-arch"], capture_output=True, text=True).stdout
    archs = [a for a in archs if f"compute_{a}" in listed]
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
