"""The GPU kernels of l2_normalize without a GPU: interpreted, and compiled ahead of time."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cuda_emulator import nvcc
from tests.needs import need
from tests.ops.triton_tools import assemble

ROOT = Path(__file__).resolve().parents[2]

INTERPRETED = """
import torch
from clipfast.kernels.normalize.launch import launch_l2_normalize, launch_l2_normalize_backward
from clipfast.ops.normalize import plain

torch.manual_seed(0)
torch.use_deterministic_algorithms(True)  # fills torch.empty with NaN
torch.utils.deterministic.fill_uninitialized_memory = True

def check(x, grad_y, eps, out_dtype):
    y, inv_norm = launch_l2_normalize(x, eps, out_dtype)
    wide = x.to(torch.float64)
    y_true, inv_true = plain.forward(wide, max(eps, 1.2e-38))
    step = torch.finfo(y.dtype).eps
    torch.testing.assert_close(y.double(), y_true, rtol=step, atol=step)
    torch.testing.assert_close(inv_norm.double(), inv_true, rtol=1e-6, atol=0)
    grad_x = launch_l2_normalize_backward(grad_y, x, inv_norm)
    exact = plain.backward(grad_y.double(), wide, inv_true)
    top = exact.abs().amax(dim=1, keepdim=True).clamp(min=1e-300)
    step = torch.finfo(x.dtype).eps
    torch.testing.assert_close(grad_x.double() / top, exact / top, rtol=step, atol=16 * step)
    assert grad_x.dtype == x.dtype and y.dtype == (out_dtype or x.dtype)

for shape in [(1, 1), (7, 3), (123, 7), (5, 252), (3, 507), (2, 1024), (1, 5000), (0, 8)]:
    for dtype, out in [(torch.float32, None), (torch.float16, torch.float32),
                       (torch.float32, torch.float16), (torch.float64, None)]:
        x, grad_y = torch.randn(shape).to(dtype), torch.randn(shape).to(out or dtype)
        check(x, grad_y, 1e-12, out)

x = torch.randn(7, 40)
x[1], x[2], x[3] = 0, x[2] * 1e30, x[3] * 1e-30
check(x, torch.randn(7, 40), 0.0, None)
check(torch.randn(6, 3, 40)[:, 1], torch.randn(40, 6).t(), 0.0, None)
bad = torch.randn(3, 5)
bad[0, 1], bad[2, 2] = float("nan"), float("inf")
y, _ = launch_l2_normalize(bad, 0.0)
assert y[0, 1].isnan() and y[2, 2].isnan() and y[1].isfinite().all()
print("agreed")
"""


def test_triton_l2_normalize_interpreted_agrees_with_fp64():
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", INTERPRETED],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "TRITON_INTERPRET": "1"},
    )
    assert done.stdout.strip() == "agreed", done.stderr


def compile_for(kernel, target, signature, constants, num_warps):
    import triton
    from triton.compiler import ASTSource

    source = ASTSource(fn=kernel, signature=signature, constexprs=constants)
    return triton.compile(source, target=target, options={"num_warps": num_warps})


@pytest.mark.parametrize("arch", [80, 90])
@pytest.mark.parametrize(
    ("x_type", "y_type", "acc", "dim"),
    [("bf16", "fp16", "fp32", 512), ("fp32", "fp32", "fp32", 1000), ("fp64", "fp64", "fp64", 640)],
)
def test_triton_l2_normalize_compiles_without_spills(arch, x_type, y_type, acc, dim):
    need("triton")
    from triton.backends.compiler import GPUTarget

    from clipfast.kernels.common.rows import tile_shape
    from clipfast.kernels.normalize import rows

    block_b, block_d, num_warps = tile_shape(dim)
    tile = {"BLOCK_B": block_b, "BLOCK_D": block_d}
    names = ["grad_y_stride", "x_stride", "D"]
    forward = {
        **{"x_ptr": f"*{x_type}", "y_ptr": f"*{y_type}", "inv_norm_ptr": f"*{acc}"},
        **{"rows": "i64", "x_stride": "i64", "threshold": "fp32", "D": "i32"},
        **dict.fromkeys(tile, "constexpr"),
    }
    backward = {
        **{"grad_y_ptr": f"*{y_type}", "x_ptr": f"*{x_type}", "inv_norm_ptr": f"*{acc}"},
        **{"grad_x_ptr": f"*{x_type}", "rows": "i64", **dict.fromkeys(names, "i64")},
        **dict.fromkeys(tile, "constexpr"),
    }
    for kernel, signature in (
        (rows.l2_normalize_kernel, forward),
        (rows.l2_normalize_backward_kernel, backward),
    ):
        made = compile_for(kernel, GPUTarget("cuda", arch, 32), signature, tile, num_warps)
        assert assemble(made, arch).spilled_bytes == 0


@pytest.mark.needs("nvcc")
@nvcc.newest_and_others
def test_cuda_l2_normalize_compiles_without_spills(archs, tmp_path):
    source = ROOT / "csrc" / "normalize" / "normalize_kernel.cu"
    words, count = nvcc.assemble(source, tmp_path, archs)
    # 10 type pairs x (16-byte, 16-byte with a block a row, unaligned) x (forward, backward).
    assert words.count("Used ") == 60 * count
    assert set(re.findall(r"(\d+) bytes spill", words)) == {"0"}


def test_kernels_missing_is_explained(tmp_path):
    # A copy of the package alone, found through PYTHONPATH and with no editable install behind it.
    shutil.copytree(ROOT / "clipfast", tmp_path / "clipfast", ignore=shutil.ignore_patterns("*.so"))
    script = (
        "import sys\n"
        "sys.meta_path[:] = [f for f in sys.meta_path if 'ditable' not in repr(f)]\n"
        "from clipfast.ops.extension import import_kernels\n"
        "import_kernels('normalize')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
    )
    assert done.returncode == 1
    assert "pip install -e . --no-build-isolation" in done.stderr
