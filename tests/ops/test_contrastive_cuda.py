"""The CUDA form of the contrastive operators: emulated on the CPU, compiled, and on a GPU if any.

tests/cuda_emulator runs csrc's kernels and host code on the CPU. The same checks run on a GPU.
"""

from __future__ import annotations

import math
import re
import shutil
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from clipfast.ops.contrastive import plain
from clipfast.ops.dtypes import DTYPES, accumulate_dtype
from clipfast.ops.normalize import plain as plain_normalize
from tests import cuda_emulator
from tests.cuda_emulator import nvcc, volta

AMPLE = 1 << 28
HALVES = (torch.float16, torch.bfloat16)
KERNELS = [cuda_emulator.CSRC / kernel for kernel in cuda_emulator.KERNELS]


@pytest.fixture(params=["emulated", pytest.param("gpu", marks=pytest.mark.gpu)])
def target(request):
    """(operators, device)"""
    if request.param == "emulated":
        return request.getfixturevalue("emulated_operators")
    return request.getfixturevalue("gpu_operators"), "cuda"


class Strip(NamedTuple):
    x: Tensor
    y: Tensor
    row_factor: Tensor
    column_factor: Tensor
    scale: Tensor
    bound: Tensor

    def to(self, device):
        return Strip(*(t.to(device) for t in self))

    def double(self):
        return Strip(*(t.double().cpu() for t in self))


def make_strip(x, y, scale, normalized=True):
    """The operators' arguments for work features x and y."""
    acc = accumulate_dtype(x.dtype)
    factors = [plain.prepare(t.double(), normalized, None)[2].to(acc) for t in (x, y)]
    largest = max(t.double().norm(dim=1).max() for t in (x, y)) if not normalized else 1.0
    bound = torch.tensor([scale * largest**2 * 1.001], dtype=acc)
    return Strip(x, y, *factors, torch.tensor([scale], dtype=acc), bound)


def random_strip(rows, columns, width, dtype, scale, normalized=True):
    x, y = torch.randn(rows, width).to(dtype), torch.randn(columns, width).to(dtype)
    if not normalized:
        x, y = x / width**0.5, y / width**0.5
    return make_strip(x, y, scale, normalized)


def lse(largest, total):
    return largest.double().cpu() + total.double().cpu().log()


def true_lse(strip, first_column):
    """lse of rows and columns in fp64 over other pairs, then with the pairs."""
    row_max, row_sum, column_max, column_sum, _, logits = plain.statistics(
        *strip.double(), first_column, True, AMPLE
    )
    others = lse(row_max, row_sum), lse(column_max, column_sum)
    pairs = logits.diagonal(first_column)
    row_lse = torch.logaddexp(others[0], pairs)
    column_lse = others[1].clone()
    held = slice(first_column, first_column + len(pairs))
    column_lse[held] = torch.logaddexp(column_lse[held], pairs)
    return others, (row_lse, column_lse), logits


def relative_error(got, true):
    return float((got.double().cpu() - true).norm() / true.norm().clamp(min=1e-300))


def fixed_shift(strip):
    limit = 700.0 if strip.scale.dtype == torch.float64 else 87.0
    return max(0.0, float(strip.bound) - limit + math.log(len(strip.y)))


def check_statistics(target, strip, first_column, keep, workspace, is_fixed=True):
    """Compares with fp64; returns (statistics on the device, true lse with the pairs)."""
    ops, device = target
    got = ops.contrastive_statistics(*strip.to(device), first_column, keep, workspace)
    row_max, row_sum, column_max, column_sum, shift, kept = got
    others, full, logits = true_lse(strip, first_column)
    atol = 1e-12 if strip.scale.dtype == torch.float64 else 4e-5
    torch.testing.assert_close(lse(row_max, row_sum), others[0], rtol=0, atol=atol)
    torch.testing.assert_close(lse(column_max, column_sum), others[1], rtol=0, atol=atol)
    if is_fixed:
        a = fixed_shift(strip)
        assert float(shift) == pytest.approx(a, rel=1e-6)
        assert (row_max == shift).all()
        assert (column_max == shift).all()
    else:
        assert shift.isnan().all()
    assert shift.shape == (1,)
    if not keep:
        assert kept.shape == (0,)
        return got, full
    if strip.x.dtype in HALVES:
        assert kept.dtype == torch.int16
        steps = logits * 32767 / strip.bound.double()
        assert float((kept.double().cpu() - steps).abs().max()) < 0.75
    else:
        torch.testing.assert_close(kept.double().cpu(), logits, rtol=0, atol=atol)
    return got, full


def check_gradients(target, strip, first_column, workspace, shift, kept, full):
    ops, device = target
    acc = strip.scale.dtype
    true = plain.gradients(
        *strip.double(),
        *(shift.double().cpu(), *full, torch.empty(0, dtype=torch.float64)),
        *(first_column, True, True, AMPLE),
    )
    tolerance = {torch.float16: 1e-3, torch.bfloat16: 5e-3, torch.float32: 5e-5}
    allowed = tolerance.get(strip.x.dtype, 1e-12)
    if kept.numel() and strip.x.dtype in HALVES:
        allowed += float(strip.bound) / 32767
    for want_rows, want_columns in ((True, True), (True, False), (False, True)):
        got = ops.contrastive_gradients(
            *strip.to(device),
            *(shift.to(device), full[0].to(acc).to(device), full[1].to(acc).to(device), kept),
            *(first_column, want_rows, want_columns, workspace),
        )
        for grad, wanted, exact in zip(got, (want_rows, want_columns), true, strict=True):
            assert grad.dtype == acc
            if not wanted:
                assert grad.shape == (0,)
                continue
            assert grad.shape == exact.shape
            assert relative_error(grad, exact) < allowed


SHAPES = [
    # rows, columns, width, first_column
    (2, 2, 8, 0),
    (7, 7, 3, 0),
    (5, 12, 7, 3),
    (123, 252, 40, 60),
    (64, 256, 16, 0),
    (300, 515, 16, 210),
]


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("workspace", [AMPLE, 1])
@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str
)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_strip_agrees_with_fp64(target, shape, dtype, workspace, keep):
    rows, columns, width, first_column = shape
    strip = random_strip(rows, columns, width, dtype, scale=14.3)
    got, full = check_statistics(target, strip, first_column, keep, workspace)
    check_gradients(target, strip, first_column, workspace, got[4], got[5], full)


@pytest.mark.parametrize("workspace", [AMPLE, 1])
@pytest.mark.parametrize("keep", [False, True])
def test_features_that_are_not_normalized(target, workspace, keep):
    strip = random_strip(40, 300, 24, torch.float16, 3.0, normalized=False)
    got, full = check_statistics(target, strip, 100, keep, workspace)
    check_gradients(target, strip, 100, workspace, got[4], got[5], full)


def test_nearly_fitted_batch_at_the_largest_scale(target):
    y = torch.randn(300, 64)
    x = y[20:140] + 0.3 * torch.randn(120, 64)
    strip = make_strip(x.half(), y.half(), 100.0)
    got, full = check_statistics(target, strip, 20, False, 1)
    assert float(got[4]) > 10
    check_gradients(target, strip, 20, 1, got[4], got[5], full)


def test_chunks_change_statistics_by_rounding_only(target):
    ops, device = target
    strip = random_strip(300, 515, 16, torch.float32, 20.0).to(device)
    whole = ops.contrastive_statistics(*strip, 7, True, AMPLE)
    parts = ops.contrastive_statistics(*strip, 7, True, 1)
    for a, b in zip(whole, parts, strict=True):
        torch.testing.assert_close(a, b, rtol=4e-5, atol=4e-5)


def test_strided_rows_and_two_exponentials(target):
    # Rows that lie apart, elements that are not adjacent, and a shift that another rank lost.
    x = torch.randn(50, 3, 24).half()[:, 1]
    strip = make_strip(x, torch.randn(24, 301).half().t(), 30.0)
    (*_, kept), full = check_statistics(target, strip, 9, True, 1)
    shift = torch.full((1,), math.nan)
    check_gradients(target, strip, 9, 1, shift, kept, full)
    check_gradients(target, strip, 9, 1, shift, kept.new_empty(0), full)


def opposed(rows, columns, width, victims):
    """Features of which rows `victims` of x have all logits near -scale."""
    x, y = torch.randn(rows, width), torch.randn(columns, width)
    y[:, 0] = y[:, 0].abs() + 50.0
    x[:, 0] = 0.0
    x[victims, 0] = -100.0
    return x, y


@pytest.mark.parametrize("workspace", [AMPLE, 1])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
def test_sums_that_underflow_fall_back_to_true_maxima(target, workspace, dtype):
    x, y = opposed(300, 515, 16, [5, 290])
    strip = make_strip(x.to(dtype), y.to(dtype), 100.0)
    got, full = check_statistics(target, strip, 7, True, workspace, is_fixed=False)
    check_gradients(target, strip, 7, workspace, got[4], got[5], full)
    check_gradients(target, strip, 7, workspace, got[4], got[5].new_empty(0), full)


def test_columns_that_vanish_in_one_chunk_alone_keep_the_shift(target):
    # In the second chunk of rows column 5 has no logit but -100; in the first it has others.
    x, y = torch.randn(300, 64), torch.randn(515, 64)
    x[192:, 1:] *= 0.03
    x[192:, 0] = 50.0
    y[5] = 0.0
    y[5, 0] = -50.0
    strip = make_strip(x, y, 100.0)
    check_statistics(target, strip, 200, False, 1)


def test_one_pair_alone_has_no_terms(target):
    ops, device = target
    strip = random_strip(1, 1, 8, torch.float16, 14.3).to(device)
    got = ops.contrastive_statistics(*strip, 0, True, AMPLE)
    assert [float(t) for t in got[:4]] == [0.0] * 4
    assert got[4].isnan().all()
    values = torch.zeros(1, device=device)
    for kept in (got[5], got[5].new_empty(0)):
        grads = ops.contrastive_gradients(
            *strip, got[4], values, values, kept, 0, True, True, AMPLE
        )
        assert all((grad == 0).all() for grad in grads)


def test_one_row_has_a_column_without_terms(target):
    strip = random_strip(1, 12, 8, torch.float32, 14.3)
    check_statistics(target, strip, 3, True, AMPLE, is_fixed=False)


@pytest.mark.parametrize("workspace", [AMPLE, 1])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_features_that_are_not_finite_show_where_they_count(target, value, workspace):
    ops, device = target
    x, y = torch.randn(300, 16), torch.randn(310, 16)
    factors = torch.full((300,), 0.2), torch.full((310,), 0.2)
    x[2, 3] = value
    strip = Strip(x, y, *factors, torch.tensor([9.0]), torch.tensor([9.1]))
    got = ops.contrastive_statistics(*strip.to(device), 4, False, workspace)
    true = plain.statistics(*strip, 4, False, AMPLE)
    for largest, total in ((0, 1), (2, 3)):
        a, b = lse(got[largest], got[total]), lse(true[largest], true[total])
        torch.testing.assert_close(a, b, equal_nan=True, rtol=1e-5, atol=1e-5)
    assert got[4].isnan().all()
    # The pair of the row has no term of it.
    assert int(got[3].isnan().sum()) == (309 if math.isnan(value) else int(b.isnan().sum()))


def row_cases():
    """Shapes with odd widths, packs, a block a row, and rows longer than a block's registers."""
    return [(1, 1), (7, 3), (123, 7), (5, 252), (3, 507), (2, 1024), (1, 5000), (2, 9000)]


TYPES = [
    (torch.float32, None),
    (torch.float32, torch.float16),
    (torch.bfloat16, None),
    (torch.bfloat16, torch.float16),
    (torch.float16, torch.bfloat16),
    (torch.float64, torch.float64),
]


def check_prepare(target, x, normalized, work_dtype):
    ops, device = target
    got = ops.contrastive_prepare(x.to(device), normalized, work_dtype)
    work, inverse_norm, factor, norm = (t.cpu() for t in got)
    true = plain.prepare(x.double(), normalized, work_dtype and torch.float64)
    acc = accumulate_dtype(x.dtype)
    rtol = 1e-13 if acc == torch.float64 else 1e-6
    exact = {"rtol": rtol, "atol": 0, "equal_nan": True}
    for a, b in zip((inverse_norm, factor, norm), true[1:], strict=True):
        assert a.dtype == acc
        torch.testing.assert_close(a.double(), b, **exact)
    if work_dtype is None:
        assert work.shape == (0,)
        assert work.dtype == x.dtype
    else:
        step = torch.finfo(work_dtype).eps
        close = {"rtol": step, "atol": step / 64, "equal_nan": True}
        torch.testing.assert_close(work.double(), true[0], **close)


@pytest.mark.parametrize("normalized", [True, False])
@pytest.mark.parametrize(("dtype", "work_dtype"), TYPES, ids=str)
def test_prepare_agrees_with_fp64(target, dtype, work_dtype, normalized):
    for shape in row_cases():
        check_prepare(target, torch.randn(shape).to(dtype), normalized, work_dtype)
    check_prepare(target, torch.randn(6, 3, 40).to(dtype)[:, 1], normalized, work_dtype)
    check_prepare(target, torch.randn(6, 41).to(dtype)[:, 1:], normalized, work_dtype)
    check_prepare(target, torch.randn(40, 6).to(dtype).t(), normalized, work_dtype)


@pytest.mark.parametrize("work_dtype", [None, torch.float16])
def test_prepare_at_the_ends_of_the_range(target, work_dtype):
    x = torch.randn(7, 40)
    x[1], x[2], x[3] = 0, x[2] * 1e30, x[3] * 1e-30
    x[4, 0], x[5, 1], x[6] = math.nan, math.inf, 3.0
    check_prepare(target, x, True, work_dtype)
    wide = torch.randn(3, 3000)
    wide[0], wide[1] = wide[0] * 1e30, 0
    check_prepare(target, wide, True, work_dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_diagonal_and_finish_agree_with_fp64(target, dtype):
    acc = accumulate_dtype(dtype)
    for rows, width in [*row_cases(), (9, 516)]:
        features = torch.randn(rows, 2, width).to(dtype)
        check_finish(target, features[:, 0], features[:, 1], torch.randn(rows, width, dtype=acc))
    odd = torch.randn(6, 83).to(dtype)
    check_finish(target, odd[:, 1:41], odd[:, 42:82], torch.randn(40, 6, dtype=acc).t())


def check_finish(target, x, other, grad):
    ops, device = target
    rows = x.shape[0]
    norms = [plain.prepare(t.double(), True, None)[1].to(grad.dtype) for t in (x, other)]
    if rows > 4:
        norms[0][1] = 0.0
    vectors = torch.rand(rows, dtype=grad.dtype) / 2 + 0.5, torch.randn(rows, dtype=grad.dtype)
    vectors[0][rows // 2 :: 2] = 0.0
    coefficient = torch.tensor([0.37], dtype=grad.dtype)
    step = torch.finfo(grad.dtype).eps

    got = ops.contrastive_diagonal(*(t.to(device) for t in (x, other, *norms)))
    true = plain.diagonal(x.double(), other.double(), *(t.double() for t in norms))
    torch.testing.assert_close(got.double().cpu(), true, rtol=0, atol=8 * step)
    for normalized in (True, False):
        args = grad, x, other, *norms, *vectors, coefficient
        grad_x, dot = ops.contrastive_finish(*(t.to(device) for t in args), normalized)
        exact_x, exact_dot = plain.finish(*(t.double() for t in args), normalized)
        assert grad_x.dtype == x.dtype
        assert dot.dtype == grad.dtype
        # What is subtracted sets the rounding: in one dimension nothing is left of it.
        smallest = torch.finfo(x.dtype).smallest_normal * torch.finfo(x.dtype).eps
        free = plain.finish(*(t.double() for t in args), False)[0]
        size = free.norm(dim=1).max() * (norms[0].double().max() if normalized else 1.0)
        allowed = {"rtol": torch.finfo(grad_x.dtype).eps, "atol": float(8 * step * size + smallest)}
        torch.testing.assert_close(grad_x.double().cpu(), exact_x, **allowed)
        scale = float(grad.double().norm(dim=1).max()) + 1
        torch.testing.assert_close(dot.double().cpu(), exact_dot, rtol=0, atol=32 * step * scale)


def test_results_are_the_same_bits_in_any_order_of_threads(emulated_operators, monkeypatch):
    ops, _ = emulated_operators
    x, y = opposed(130, 300, 16, [5])
    for strip in (random_strip(130, 300, 16, torch.float16, 14.3), make_strip(x, y, 100.0)):
        runs = []
        for order in ("0", "1"):
            monkeypatch.setenv("CLIPFAST_EMULATOR_REVERSED", order)
            got = ops.contrastive_statistics(*strip, 7, True, 1)
            lses = got[0] + got[1].log() + 1, got[2] + got[3].log() + 1
            grads = ops.contrastive_gradients(*strip, got[4], *lses, got[5], 7, True, True, 1)
            rows = ops.contrastive_prepare(strip.x, True, torch.float16)
            long = ops.contrastive_prepare(strip.y.reshape(2, -1), True, torch.float16)
            runs.append((*got, *grads, *rows, *long))
        for a, b in zip(*runs, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)


def test_wrong_arguments_are_explained(target):
    ops, device = target
    strip = random_strip(5, 12, 8, torch.float32, 14.3).to(device)
    with pytest.raises(RuntimeError, match="first_column 8"):
        ops.contrastive_statistics(*strip, 8, False, AMPLE)
    with pytest.raises(RuntimeError, match="row_factor of 5 elements"):
        ops.contrastive_statistics(*strip._replace(row_factor=strip.column_factor), 0, False, AMPLE)
    with pytest.raises(RuntimeError, match="expected y of 8 columns"):
        ops.contrastive_statistics(*strip._replace(y=strip.y.half()), 0, False, AMPLE)


def test_emulated_l2_normalize_agrees_with_fp64(emulated_operators):
    ops, _ = emulated_operators
    for shape in row_cases():
        for dtype, out in ((torch.float32, torch.float16), (torch.bfloat16, None)):
            x = torch.randn(shape).to(dtype)
            x[0] *= 1e25
            y, inv_norm = ops.l2_normalize(x, 1e-12, out)
            y_true, inv_true = plain_normalize.forward(x.double(), 1e-12)
            step = torch.finfo(y.dtype).eps
            torch.testing.assert_close(y.double(), y_true, rtol=step, atol=step)
            torch.testing.assert_close(inv_norm.double(), inv_true, rtol=1e-6, atol=0)
            grad_y = torch.randn(shape).to(y.dtype)
            grad_x = ops.l2_normalize_backward(grad_y, x, inv_norm)
            exact = plain_normalize.backward(grad_y.double(), x.double(), inv_true)
            top = grad_y.double().norm(dim=1, keepdim=True) * inv_true[:, None]
            step = torch.finfo(x.dtype).eps
            torch.testing.assert_close(
                grad_x.double() / top, exact / top, rtol=step, atol=16 * step
            )


KERNEL_COUNTS = {"normalize_kernel": 60, "softmax_kernel": 23, "rows_kernel": 54}


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not on PATH")
@pytest.mark.parametrize("source", KERNELS[1:], ids=lambda path: path.stem)
def test_cuda_contrastive_compiles_without_spills(source, tmp_path):
    words, archs = nvcc.assemble(source, tmp_path)
    assert words.count("Used ") == KERNEL_COUNTS[source.stem] * archs
    assert set(re.findall(r"(\d+) bytes spill", words)) == {"0"}


@pytest.mark.skipif(volta.parts() is None, reason=volta.REMEDY)
@pytest.mark.parametrize("source", KERNELS, ids=lambda path: path.stem)
def test_cuda_kernels_compile_for_v100_without_spills(source, tmp_path):
    words = volta.assemble(volta.compile_to_ptx(source, tmp_path), tmp_path)
    assert words.count("Compiling entry function") == KERNEL_COUNTS[source.stem]
    assert set(re.findall(r"(\d+) bytes spill", words)) == {"0"}
