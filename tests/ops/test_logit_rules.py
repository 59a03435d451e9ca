"""Another rule for a logit, sigmoid's, in the walks that softmax uses: on the CPU and on CUDA.

Its sums are sum_j log(1 + exp(S_ij)) and sum_i log(1 + exp(S_ij)) over all that are no pairs, its
weights P_ij = 1 / (1 + exp(-S_ij)).
"""

from __future__ import annotations

import ctypes
import math
import subprocess
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.utils.cpp_extension import include_paths, library_paths

from tests.needs import need

CSRC = Path(__file__).resolve().parents[2] / "csrc"
SOURCE = Path(__file__).with_name("sigmoid_rule_cpu.cpp")
SCALE = 14.3
# rows, columns, width, first_column; the last one needs several tiles on CPU and CUDA.
SHAPES = [(1, 1, 3, 0), (5, 12, 7, 3), (123, 252, 40, 60), (300, 2100, 8, 1400)]


def make_strip(shape, dtype=torch.float32) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(x, y, row_factor, column_factor)."""
    rows, columns, width, first = shape
    x, y = torch.randn(rows, width), torch.randn(columns, width)
    y[first : first + rows] += x
    x, y = x.to(dtype), y.to(dtype)
    acc = torch.float64 if dtype == torch.float64 else torch.float32
    return x, y, *(1 / t.to(acc).norm(dim=1) for t in (x, y))


def reference(x, y, row_factor, column_factor, first_column):
    """(sums of rows, of columns, Q y, Q^T x) in float64."""
    x, y, f, g = (t.double() for t in (x, y, row_factor, column_factor))
    factors = f[:, None] * g
    logits = SCALE * factors * (x @ y.T)
    is_pair = torch.arange(len(y)) == torch.arange(len(x))[:, None] + first_column
    terms = torch.nn.functional.softplus(logits).masked_fill(is_pair, 0.0)
    q = (logits.sigmoid() * factors).masked_fill(is_pair, 0.0)
    return terms.sum(1), terms.sum(0), q @ y, q.T @ x


def check(got, exact, tolerance: float) -> None:
    for a, b in zip(got, exact, strict=True):
        error = (a.double() - b).norm() / b.norm().clamp(min=1e-30)
        assert error < tolerance


@pytest.fixture(scope="module")
def cpu_walks(tmp_path_factory):
    """The walks compiled with sigmoid's rule, for any machine."""
    need("g++")
    library = tmp_path_factory.mktemp("sigmoid_rule") / "sigmoid_rule.so"
    command = ["g++", "-std=c++20", "-O1", "-shared", "-fPIC", "-fopenmp", f"-I{CSRC}"]
    command += ["-DCPU_CAPABILITY=DEFAULT", "-DCPU_CAPABILITY_DEFAULT"]
    command += [f"-D_GLIBCXX_USE_CXX11_ABI={int(torch._C._GLIBCXX_USE_CXX11_ABI)}"]
    command += [flag for path in include_paths() for flag in ("-isystem", path)]
    command += [str(SOURCE), "-o", str(library)]
    command += [flag for path in library_paths() for flag in (f"-L{path}", f"-Wl,-rpath,{path}")]
    done = subprocess.run([*command, "-lc10", "-ltorch_cpu"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    return ctypes.CDLL(str(library)).sigmoid_walks


def test_cpu_walks_serve_another_rule(cpu_walks):
    for shape in SHAPES:
        rows, columns, width, first = shape
        strip = make_strip(shape)
        scale = torch.tensor([SCALE])
        sums = [torch.full((n,), math.nan, dtype=torch.float64) for n in (rows, columns)]
        grads = [torch.full((n, width), math.nan) for n in (rows, columns)]
        tensors = (*strip, scale, *sums, *grads)
        sizes = (ctypes.c_int64 * 4)(rows, columns, width, first)
        cpu_walks(sizes, *(ctypes.c_void_p(t.data_ptr()) for t in tensors))
        check((*sums, *grads), reference(*strip, first), 2e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64], ids=str)
def test_emulated_cuda_walks_serve_another_rule(emulated_operators, dtype):
    ops, _ = emulated_operators
    # fp16 weights round P.
    tolerance = {torch.float16: 1e-3, torch.float32: 2e-6, torch.float64: 1e-13}[dtype]
    for shape in SHAPES:
        first = shape[3]
        strip = make_strip(shape, dtype)
        scale = torch.tensor([SCALE], dtype=strip[2].dtype)
        for workspace in (1 << 28, 1):
            args = (*strip, scale, scale, first, workspace)
            got = (*ops.sigmoid_sums(*args), *ops.sigmoid_gradients(*args))
            check(got, reference(*strip, first), tolerance)
