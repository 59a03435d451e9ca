"""The contrastive operators agree with fp64 in every form: plain torch, this CPU, CUDA, Triton.

tests/cuda_emulator runs csrc's CUDA kernels and host code on the CPU. Triton's interpreter runs the
same cases in test_contrastive_triton.py.
"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from clipfast.ops.contrastive import Operators, operators
from tests.needs import need
from tests.ops.contrastive_cases import (
    BF16,
    CASES,
    F16,
    F32,
    F64,
    HUGE,
    LARGE,
    LONG_ROWS,
    MEDIUM,
    PLENTY,
    ROW_SHAPES,
    SMALL,
    Target,
    make_strip,
    opposed,
    strip_of,
)
from tests.ops.contrastive_triton_cases import make_target as make_triton_target

SHAPES = [*SMALL, *MEDIUM, *LARGE]
on_gpu = pytest.mark.gpu
needs_cpu = pytest.mark.needs("extension")


def overloads(ops) -> Operators:
    return Operators(*(getattr(ops, f"contrastive_{name}") for name in Operators._fields))


def cuda_target(name: str, ops, device: str) -> Target:
    shapes = SHAPES + HUGE * (device == "cuda")
    rows = ROW_SHAPES + LONG_ROWS
    return Target(name, device, overloads(ops), (F16, BF16, F32, F64), shapes, rows)


TARGETS = ("plain", "cpu", "emulated", *(pytest.param(n, marks=on_gpu) for n in ("cuda", "triton")))
# The emulator takes longest for these; "rows" and the dtypes walk through the same kernels.
LONG = ("least_workspace", "some_sums_underflow")


@pytest.fixture(params=TARGETS)
def target(request) -> Target:
    """Where and with what the operators run."""
    if request.param == "plain":
        dtypes = (F16, BF16, F32, F64)
        return Target("plain", "cpu", operators("plain"), dtypes, SHAPES, has_shift=False)
    if request.param == "cpu":
        need("extension")
        return Target("cpu", "cpu", operators("cpu"), (F32, BF16), SHAPES)
    if request.param == "emulated":
        ops, device = request.getfixturevalue("emulated_operators")
        return cuda_target("emulated", ops, device)
    if request.param == "cuda":
        return cuda_target("cuda", request.getfixturevalue("gpu_operators"), "cuda")
    return make_triton_target("cuda")


@pytest.mark.parametrize("case", [case for case in CASES if case not in LONG])
def test_contrastive_agrees_with_fp64(target, case):
    CASES[case](target)


@pytest.mark.parametrize("case", LONG)
@pytest.mark.parametrize(
    "target",
    [pytest.param(t, marks=pytest.mark.thorough) if t == "emulated" else t for t in TARGETS],
    indirect=True,
)
def test_contrastive_agrees_with_fp64_in_long_cases(target, case):
    CASES[case](target)


# The words are those of the CUDA form.
@pytest.mark.parametrize("target", ["emulated", pytest.param("cuda", marks=on_gpu)], indirect=True)
def test_contrastive_wrong_arguments_are_explained(target):
    strip = make_strip(5, 12, 8, F32).to(target.device)
    statistics = target.ops.statistics
    with pytest.raises(RuntimeError, match="first_column 8"):
        statistics(*strip, 8, False, PLENTY)
    with pytest.raises(RuntimeError, match="row_factor of 5 elements"):
        statistics(*strip._replace(row_factor=strip.column_factor), 0, False, PLENTY)
    with pytest.raises(RuntimeError, match="expected y of 8 columns"):
        statistics(*strip._replace(y=strip.y.half()), 0, False, PLENTY)


def test_contrastive_same_bits_in_any_order_of_threads(emulated_operators, monkeypatch):
    ops, _ = emulated_operators
    x, y = opposed(130, 300, 16, [5])
    for strip in (make_strip(130, 300, 16, F16), strip_of(x, y, 100.0)):
        runs = []
        for order in ("0", "1"):
            monkeypatch.setenv("CLIPFAST_EMULATOR_REVERSED", order)
            got = ops.contrastive_statistics(*strip, 7, True, 1)
            lses = got[0] + got[1].log() + 1, got[2] + got[3].log() + 1
            grads = ops.contrastive_gradients(*strip, got[4], *lses, got[5], 7, True, True, 1)
            rows = ops.contrastive_prepare(strip.x, True, F16)
            long = ops.contrastive_prepare(strip.y.reshape(2, -1), True, F16)
            runs.append((*got, *grads, *rows, *long))
        for a, b in zip(*runs, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)


# The strip's cases, with one thread and two.
ON_A_LESSER_PROCESSOR = """
import torch
from clipfast import _C
from clipfast.ops.contrastive import operators
from tests.ops.contrastive_cases import CASES, F32, MEDIUM, LARGE, Target
target = Target("cpu", "cpu", operators("cpu"), (F32,), [*MEDIUM, *LARGE])
for threads in (1, 2):
    torch.set_num_threads(threads)
    for name in ("fp32", "some_sums_underflow", "rows"):
        CASES[name](target)
print(_C.cpu_capability, _C.has_bfloat16_product)
"""


@needs_cpu
@pytest.mark.parametrize("capability", ["default", "avx2"])
def test_contrastive_agrees_with_fp64_on_lesser_processors(capability):
    done = subprocess.run(
        [sys.executable, "-c", ON_A_LESSER_PROCESSOR],
        capture_output=True,
        text=True,
        env={**os.environ, "CLIPFAST_CPU_CAPABILITY": capability},
    )
    if "asks for more" in done.stderr:
        pytest.skip(f"this machine has no {capability}")
    assert done.stdout.split() == [capability, "False"], done.stderr
