"""The CUDA kernels of the contrastive loss and of l2_normalize, compiled; and the latter emulated.

What the contrastive operators compute is in test_contrastive_forms.py.
"""

from __future__ import annotations

import re

import pytest
import torch

from clipfast.ops.normalize import plain
from tests import cuda_emulator
from tests.cuda_emulator import nvcc, volta
from tests.ops.contrastive_cases import LONG_ROWS, ROW_SHAPES

KERNELS = [cuda_emulator.CSRC / kernel for kernel in cuda_emulator.KERNELS]


def test_emulated_l2_normalize_agrees_with_fp64(emulated_operators):
    ops, _ = emulated_operators
    for shape in [*ROW_SHAPES, *LONG_ROWS]:
        for dtype, out in ((torch.float32, torch.float16), (torch.bfloat16, None)):
            x = torch.randn(shape).to(dtype)
            x[0] *= 1e25
            y, inv_norm = ops.l2_normalize(x, 1e-12, out)
            y_true, inv_true = plain.forward(x.double(), 1e-12)
            step = torch.finfo(y.dtype).eps
            torch.testing.assert_close(y.double(), y_true, rtol=step, atol=step)
            torch.testing.assert_close(inv_norm.double(), inv_true, rtol=1e-6, atol=0)
            grad_y = torch.randn(shape).to(y.dtype)
            grad_x = ops.l2_normalize_backward(grad_y, x, inv_norm)
            exact = plain.backward(grad_y.double(), x.double(), inv_true)
            top = grad_y.double().norm(dim=1, keepdim=True) * inv_true[:, None]
            step = torch.finfo(x.dtype).eps
            torch.testing.assert_close(
                grad_x.double() / top, exact / top, rtol=step, atol=16 * step
            )


KERNEL_COUNTS = {"normalize_kernel": 60, "softmax_kernel": 23, "rows_kernel": 54}


@pytest.mark.needs("nvcc")
@pytest.mark.parametrize("source", KERNELS[1:], ids=lambda path: path.stem)
@nvcc.newest_and_others
def test_cuda_contrastive_compiles_without_spills(source, archs, tmp_path):
    words, count = nvcc.assemble(source, tmp_path, archs)
    assert words.count("Used ") == KERNEL_COUNTS[source.stem] * count
    assert set(re.findall(r"(\d+) bytes spill", words)) == {"0"}


@pytest.mark.needs("cuda-12-compiler")
@pytest.mark.parametrize("source", KERNELS, ids=lambda path: path.stem)
def test_cuda_kernels_compile_for_v100_without_spills(source, tmp_path):
    words = volta.assemble(volta.compile_to_ptx(source, tmp_path), tmp_path)
    assert words.count("Compiling entry function") == KERNEL_COUNTS[source.stem]
    assert set(re.findall(r"(\d+) bytes spill", words)) == {"0"}
