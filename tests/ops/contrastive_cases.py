"""Checks of the contrastive operators against fp64, the same for every implementation.

A check takes a target. tests/ops/test_contrastive_forms.py runs them in plain torch, on this CPU,
as emulated CUDA and on a GPU; tests/ops/contrastive_triton_cases.py in Triton.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from clipfast.ops.contrastive import Operators, plain
from clipfast.ops.contrastive.impls import HAS_BFLOAT16_PRODUCT
from clipfast.ops.dtypes import accumulate_dtype

F32, F16, BF16, F64 = torch.float32, torch.float16, torch.bfloat16, torch.float64
HALVES = (F16, BF16)
PLENTY = 1 << 28  # bytes: one chunk
ROUNDING = {F16: 2.0**-11, BF16: 2.0**-8, F32: 0.0, F64: 0.0}
# Rows, columns, width, first column.
SMALL = [(1, 1, 7, 0), (1, 2, 1, 1), (2, 2, 8, 0), (7, 7, 64, 0), (5, 12, 1, 3), (17, 33, 257, 16)]
MEDIUM = [(5, 12, 4, 3), (7, 7, 124, 0), (64, 256, 16, 0), (123, 252, 64, 100)]
LARGE = [(300, 515, 16, 210), (300, 517, 130, 111)]
HUGE = [(507, 1000, 252, 3), (1000, 3000, 512, 1000)]
ROW_SHAPES = [(1, 1), (7, 3), (123, 7), (5, 252), (3, 507), (2, 1024), (2, 4096)]
LONG_ROWS = [(1, 5000), (2, 9000)]  # longer than a block's registers


class Target(NamedTuple):
    """An implementation's operators and where its tensors are.

    Attributes:
        name: "plain", "cpu", "emulated", "cuda" or "triton".
        device: of the tensors.
        ops: the five operators.
        dtypes: types of the features.
        shapes: of strips.
        row_shapes: of features alone.
        has_shift: sums may go by one fixed shift.
    """

    name: str
    device: str
    ops: Operators
    dtypes: tuple[torch.dtype, ...]
    shapes: list[tuple[int, int, int, int]]
    row_shapes: list[tuple[int, int]] = ROW_SHAPES
    has_shift: bool = True

    @property
    def keeps_steps(self) -> bool:
        """Whether logits of half-precision features are kept in 16 bits."""
        return self.name in ("emulated", "cuda", "triton")

    def takes(self, dtype: torch.dtype, width: int = 2) -> bool:
        """Whether features of a type and width are multiplied as they come."""
        if self.name == "cpu" and dtype == BF16:
            return HAS_BFLOAT16_PRODUCT and width % 2 == 0
        return dtype in self.dtypes

    def rounding(self, dtype: torch.dtype) -> float:
        """Largest relative error of a weight of the gradients' products."""
        if self.name == "plain":
            return 0.0
        # The interpreter cuts bf16 off where a GPU rounds to nearest.
        is_cut = self.name == "triton" and self.device == "cpu" and dtype == BF16
        return 2.0**-7 if is_cut else ROUNDING[dtype]

    def lse_error(self, dtype: torch.dtype, bound: float) -> float:
        """Largest error of a logarithm of sums, for logits within a bound."""
        if dtype == F64:
            return 1e-12
        if self.name == "triton":
            return 1e-6 + 1e-6 * bound
        # Tensor cores cut sums off where others round them.
        is_cut = self.device == "cuda" and dtype in HALVES
        return 3e-6 + (1e-6 if is_cut else 4e-7) * bound


class Strip(NamedTuple):
    """The first six arguments of statistics and gradients."""

    x: Tensor
    y: Tensor
    row_factor: Tensor
    column_factor: Tensor
    scale: Tensor
    bound: Tensor

    def to(self, device: str) -> Strip:
        """A copy on a device, strides kept."""
        return Strip(*(t.to(device) for t in self))

    def double(self) -> Strip:
        """In fp64 on the CPU."""
        return Strip(*(t.double().cpu() for t in self))


def make_strip(
    rows: int,
    columns: int,
    width: int,
    dtype: torch.dtype,
    scale: float = 14.3,
    normalize: bool = True,
    spread: float = 1.0,
) -> Strip:
    """Random features as `prepare` leaves them."""
    sides = []
    for length in (rows, columns):
        raw = torch.randn(length, width, dtype=F64) * spread
        work, _, factor, _ = plain.prepare(raw if dtype == F64 else raw.float(), normalize, dtype)
        sides.append((work, factor))
    return with_bound(sides[0][0], sides[1][0], sides[0][1], sides[1][1], scale)


def strip_of(x: Tensor, y: Tensor, scale: float, normalize: bool = True) -> Strip:
    """The arguments for the given work features."""
    acc = accumulate_dtype(x.dtype)
    factors = [plain.prepare(t.double(), normalize, None)[2].to(acc) for t in (x, y)]
    return with_bound(x, y, *factors, scale)


def with_bound(x: Tensor, y: Tensor, f: Tensor, g: Tensor, scale: float) -> Strip:
    """The arguments, with the least bound that rounding allows."""
    lengths = [(t.double().norm(dim=1) * k.double()).max() for t, k in ((x, f), (y, g))]
    bound = (lengths[0] * lengths[1] * scale * (1 + 1e-6)).to(f.dtype).reshape(1)
    return Strip(x, y, f, g, torch.tensor([scale], dtype=f.dtype), bound)


def log_sums(largest: Tensor, total: Tensor) -> Tensor:
    return largest.double().cpu() + total.double().cpu().log()


def fixed_shift(strip: Strip) -> float:
    limit = 700.0 if strip.scale.dtype == F64 else 87.0
    return max(0.0, float(strip.bound) - limit + math.log(len(strip.y)))


def check_statistics(target, strip, first_column, keep, workspace=PLENTY, is_fixed=True):
    """Compares with fp64; returns the results, and the truth.

    `is_fixed` says whether one shift serves all sums; None where either may be.
    """
    arguments = (*strip.to(target.device), first_column, keep, workspace)
    got, again = target.ops.statistics(*arguments), target.ops.statistics(*arguments)
    assert all(torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in zip(got, again, strict=True))
    true = plain.statistics(*strip.double(), first_column, True, PLENTY)
    bound, shift = float(strip.bound.double()), got[4]
    is_fixed = bool(shift.isfinite()) if is_fixed is None else is_fixed and target.has_shift
    allowed = target.lse_error(strip.x.dtype, bound)
    for i, length in ((0, strip.x.shape[0]), (2, strip.y.shape[0])):
        largest, total = got[i], got[i + 1]
        assert largest.shape == total.shape == (length,)
        assert largest.dtype == total.dtype == strip.scale.dtype
        exact = log_sums(*true[i : i + 2])
        torch.testing.assert_close(log_sums(largest, total), exact, rtol=0, atol=allowed)
        if is_fixed:
            assert (largest == shift).all()
        assert ((total > 0) | (largest == 0)).all()  # over nothing: maximum 0, sum 0
    assert shift.shape == (1,)
    if is_fixed:
        assert float(shift) == pytest.approx(fixed_shift(strip), rel=1e-6)
    else:
        assert shift.isnan()
    if keep:
        check_kept(target, got[5], true[5], strip.x.dtype, bound)
    else:
        assert got[5].shape == (0,)
    return got, true


def check_kept(target, kept, logits, dtype, bound):
    assert kept.shape == logits.shape
    if target.name == "cpu":
        return  # in units of its own, which the gradients understand
    if dtype in HALVES and target.keeps_steps:
        assert kept.dtype == torch.int16
        step = bound / 32767
        error = (kept.double().cpu() * step - logits).abs().max()
        assert error <= step * 0.51 + 1e-6 * bound
    else:
        assert kept.dtype == accumulate_dtype(dtype)
        torch.testing.assert_close(kept.double().cpu(), logits, rtol=0, atol=1e-6 * bound + 1e-12)


def full_lse(true, first_column):
    """Row and column log-sum-exp in fp64, pairs included."""
    row = torch.arange(true[0].shape[0])
    pair = true[5][row, row + first_column]
    row_lse = torch.logaddexp(log_sums(*true[:2]), pair)
    column_lse = log_sums(*true[2:4])
    column_lse[row + first_column] = torch.logaddexp(column_lse[row + first_column], pair)
    return row_lse, column_lse


def check_gradients(target, strip, first_column, got, true, workspace=PLENTY):
    """Each element's error against the sum of the absolute terms that it is made of."""
    dtype, acc, wide = strip.x.dtype, strip.scale.dtype, strip.double()
    lse = full_lse(true, first_column)
    shift, kept = got[4].to(target.device), got[5]
    shared = (first_column, True, True, PLENTY)
    # Logits are given, so that the truth and the sum of absolute values share them.
    known = (*wide[2:], true[4], *(t.to(acc).double() for t in lse), true[5])
    exact = plain.gradients(wide.x, wide.y, *known, *shared)
    terms = plain.gradients(wide.x.abs(), wide.y.abs(), *known, *shared)
    bound = float(wide.bound)
    rate = 1e-11 if dtype == F64 else 1.01 * target.rounding(dtype) + 2e-6 + 1e-6 * bound
    if kept.numel() and kept.dtype == torch.int16:
        rate += bound / 65000
    # Half of fp16's smallest over 2^14.
    least = 2.0**-39 if dtype == F16 and target.keeps_steps else 1e-38
    arguments = [*strip.to(target.device), shift, *(t.to(acc).to(target.device) for t in lse), kept]

    def run(want_rows, want_columns):
        return target.ops.gradients(*arguments, first_column, want_rows, want_columns, workspace)

    results = run(True, True)
    for result, truth, size, other in zip(results, exact, terms, (wide.y, wide.x), strict=True):
        assert result.dtype == acc
        error = (result.double().cpu() - truth).abs()
        floor = least * other.abs().sum(dim=0)
        assert (error <= rate * size + floor).all(), float((error / (size + 1e-300)).max())
    for wanted in ((True, False), (False, True), (False, False)):
        for given, again, want in zip(results, run(*wanted), wanted, strict=True):
            assert torch.equal(again, given) if want else again.shape == (0,)


def check_strip(
    target, strip, first_column=0, workspace=PLENTY, is_fixed=True, keeps=(False, True)
):
    for keep in keeps:
        got, true = check_statistics(target, strip, first_column, keep, workspace, is_fixed)
        check_gradients(target, strip, first_column, got, true, workspace)


def check_shapes(target, dtype, workspace=PLENTY, scale=14.3):
    for rows, columns, width, first_column in target.shapes:
        if target.takes(dtype, width):
            strip = make_strip(rows, columns, width, dtype, scale)
            is_fixed = None if scale > 50 else rows > 1  # few terms may all be small
            check_strip(target, strip, first_column, workspace, is_fixed)


def case_fp32(target):
    check_shapes(target, F32)


def case_largest_scale(target):
    for dtype in (F32, BF16) if target.name in ("plain", "cpu") else (F32,):
        check_shapes(target._replace(shapes=target.shapes[-3:]), dtype, scale=100.0)


def case_fp16(target):
    check_shapes(target, F16)


def case_bf16(target):
    check_shapes(target, BF16)


def case_fp64(target):
    check_shapes(target, F64)


def case_least_workspace(target):
    for dtype in target.dtypes:
        check_shapes(target, dtype, 1)


def case_not_normalized(target):
    for dtype in target.dtypes:
        if target.takes(dtype):
            # Logits are small enough for the shift; then they are not.
            for workspace in (PLENTY, 1):
                strip = make_strip(40, 90, 24, dtype, 0.125, normalize=False)
                check_strip(target, strip, 30, workspace)
            strip = make_strip(20, 40, 64, dtype, 2.0, normalize=False, spread=2.0)
            is_wide = dtype == F64
            assert 300 < float(strip.bound) < 1200
            if not is_wide:
                check_strip(target, strip, 3, is_fixed=False)


def case_nearly_fitted_at_the_largest_scale(target):
    y = torch.randn(90, 64)
    x = y[20:60] + 0.3 * torch.randn(40, 64)
    for dtype in target.dtypes:
        if dtype != F64 and target.takes(dtype):
            strip = strip_of(x.to(dtype), y.to(dtype), 100.0)
            got, _ = check_statistics(target, strip, 20, False, 1)
            assert float(got[4]) > 10 or not target.has_shift
            check_strip(target, strip, 20)


def case_underflow_antipodal(target):
    for dtype in target.dtypes:
        if dtype == F64 or not target.takes(dtype):
            continue
        direction = torch.randn(1, 64)
        x = direction + 0.05 * torch.randn(20, 64)
        y = -direction + 0.05 * torch.randn(40, 64)
        # At 80, sums are about 2^-110 under the fixed shift: not zero yet, and not to be trusted.
        for scale in (80.0, 100.0):
            strip = strip_of(x.to(dtype), y.to(dtype), scale)
            check_strip(target, strip, 3, is_fixed=False, keeps=(scale == 100.0,))


def opposed(rows, columns, width, victims):
    """Features of which rows `victims` of x have all logits near -scale."""
    x, y = torch.randn(rows, width), torch.randn(columns, width)
    y[:, 0] = y[:, 0].abs() + 50.0
    x[:, 0] = 0.0
    x[victims, 0] = -100.0
    return x, y


def case_some_sums_underflow(target):
    for dtype in target.dtypes:
        if dtype == F64 or not target.takes(dtype):
            continue
        x, y = opposed(*target.shapes[-1][:2], 16, [0, -1])
        strip = strip_of(x.to(dtype), y.to(dtype), 100.0)
        for workspace in (PLENTY, 1):
            got, true = check_statistics(target, strip, 1, True, workspace, is_fixed=False)
            check_gradients(target, strip, 1, got, true, workspace)
            got = (*got[:5], got[5].new_empty(0))
            check_gradients(target, strip, 1, got, true, workspace)


def case_columns_that_vanish_in_one_chunk_alone_keep_the_shift(target):
    # Rows from 2/3 on leave column 5 with no logit but -100; the others give it some.
    rows, columns = target.shapes[-1][:2]
    late = rows * 2 // 3
    x, y = torch.randn(rows, 64), torch.randn(columns, 64)
    x[late:, 1:] *= 0.03
    x[late:, 0] = 50.0
    y[5] = 0.0
    y[5, 0] = -50.0
    check_statistics(target, strip_of(x, y, 100.0), columns - rows, False, 1)


def case_one_pair_alone_has_no_terms(target):
    for dtype in target.dtypes:
        if not target.takes(dtype, 8):
            continue
        strip = make_strip(1, 1, 8, dtype).to(target.device)
        got = target.ops.statistics(*strip, 0, True, PLENTY)
        assert [float(t) for t in got[:4]] == [0.0] * 4
        assert got[4].isnan().all()
        values = torch.zeros(1, device=target.device, dtype=strip.scale.dtype)
        for kept in (got[5], got[5].new_empty(0)):
            arguments = (*strip, got[4], values, values, kept)
            grads = target.ops.gradients(*arguments, 0, True, True, PLENTY)
            assert all((grad == 0).all() for grad in grads)


def case_one_row_has_a_column_without_terms(target):
    check_strip(target, make_strip(1, 12, 8, F32), 3, is_fixed=False)


def case_large_scale_keeps_the_shift(target):
    got, _ = check_statistics(target, make_strip(20, 40, 64, F32, 100.0), 3, False)
    assert float(got[4]) > 10 or not target.has_shift


def case_scale_of_zero(target):
    check_strip(target, make_strip(5, 12, 64, F32, 0.0), 3)


def case_zero_rows(target):
    for dtype in target.dtypes:
        if not target.takes(dtype, 64):
            continue
        x, y, f, g, _, _ = make_strip(5, 12, 64, dtype)
        x[1], f[1], y[4], g[4] = 0, 0, 0, 0
        strip = with_bound(x, y, f, g, 14.3)
        check_strip(target, strip, 3)
        vectors = (torch.zeros(1), torch.full((5,), 3.0), torch.full((12,), 3.0), torch.empty(0))
        vectors = [t.to(target.device, f.dtype) for t in vectors]
        here = (*strip.to(target.device), *vectors)
        results = target.ops.gradients(*here, 3, True, True, PLENTY)
        assert (results[0][1] == 0).all()
        assert (results[1][4] == 0).all()


def case_nan_features(target):
    for dtype in target.dtypes:
        for bad_bound in (False, True) if target.takes(dtype, 64) else ():
            strip = make_strip(20, 40, 64, dtype)
            strip.x[2, 1] = math.nan
            if bad_bound:
                strip.bound.fill_(math.nan)
            here = strip.to(target.device)
            for keep in {False, bad_bound}:
                got = target.ops.statistics(*here, 3, keep, PLENTY)
                true = plain.statistics(*strip.double(), 3, True, PLENTY)
                assert got[4].isnan()
                for i in (0, 2):
                    lse, exact = log_sums(*got[i : i + 2]), log_sums(*true[i : i + 2])
                    torch.testing.assert_close(lse, exact, rtol=0, atol=1e-5, equal_nan=True)
                assert got[1][2].isnan()
                lse = [t.to(strip.scale.dtype).to(target.device) for t in full_lse(true, 3)]
                results = target.ops.gradients(*here, got[4], *lse, got[5], 3, True, True, PLENTY)
                assert all(t.isnan().all() for t in results)


def case_features_that_are_not_finite_show_where_they_count(target):
    rows, columns = 70, 90
    for value in (math.nan, math.inf):
        for workspace in (PLENTY, 1):
            x, y = torch.randn(rows, 16), torch.randn(columns, 16)
            factors = torch.full((rows,), 0.2), torch.full((columns,), 0.2)
            x[2, 3] = value
            strip = Strip(x, y, *factors, torch.tensor([9.0]), torch.tensor([9.1]))
            got = target.ops.statistics(*strip.to(target.device), 4, False, workspace)
            true = plain.statistics(*strip, 4, False, PLENTY)
            for i in (0, 2):
                a, b = log_sums(*got[i : i + 2]), log_sums(*true[i : i + 2])
                torch.testing.assert_close(a, b, equal_nan=True, rtol=1e-5, atol=1e-5)
            assert got[4].isnan().all()
            # The pair of the row has no term of it.
            expected = columns - 1 if math.isnan(value) else int(b.isnan().sum())
            assert int(got[3].isnan().sum()) == expected


def case_strided_features(target):
    for dtype in target.dtypes:
        if not target.takes(dtype, 24):
            continue
        x = torch.randn(50, 3, 24).to(dtype)[:, 1]
        strip = strip_of(x, torch.randn(24, 71).to(dtype).t(), 30.0)
        dense = Strip(strip.x.contiguous(), strip.y.contiguous(), *strip[2:])
        runs = [target.ops.statistics(*s.to(target.device), 9, True, 1) for s in (strip, dense)]
        # A library's product may add in another order where rows lie apart.
        close = {"rtol": 1e-5, "atol": 1e-5} if target.name == "plain" else {"rtol": 0, "atol": 0}
        for a, b in zip(*runs, strict=True):
            torch.testing.assert_close(a, b, equal_nan=True, **close)
        got, true = check_statistics(target, strip, 9, True, 1)
        # A shift that another rank lost: two exponentials.
        lost = torch.full_like(got[4], math.nan)
        for kept in (got[5], got[5].new_empty(0)):
            check_gradients(target, strip, 9, (*got[:4], lost, kept), true, 1)


def case_chunks_change_statistics_by_rounding_only(target):
    strip = make_strip(*target.shapes[-1][:3], F32, 20.0).to(target.device)
    whole = target.ops.statistics(*strip, 7, True, PLENTY)
    parts = target.ops.statistics(*strip, 7, True, 1)
    for a, b in zip(whole, parts, strict=True):
        torch.testing.assert_close(a, b, rtol=4e-5, atol=4e-5, equal_nan=True)


def check_prepare(target, x, normalize, work_dtype):
    work, *vectors = target.ops.prepare(x.to(target.device), normalize, work_dtype)
    true_work, *true_vectors = plain.prepare(x.double(), normalize, work_dtype)
    acc = accumulate_dtype(x.dtype)
    if work_dtype is None:
        assert work.shape == (0,)
        assert work.dtype == x.dtype
    else:
        assert work.dtype == work_dtype
        assert work.is_contiguous() or target.name == "plain"
        # The interpreter cuts off what a GPU rounds to bf16.
        is_cut = target.name == "triton" and target.device == "cpu" and work_dtype == BF16
        rtol = 2.0**-7 if is_cut else 0
        torch.testing.assert_close(work.cpu(), true_work, rtol=rtol, atol=0, equal_nan=True)
    close = {"rtol": 1e-13 if acc == F64 else 1e-6, "atol": 0, "equal_nan": True}
    for vector, truth in zip(vectors, true_vectors, strict=True):
        assert vector.dtype == acc
        torch.testing.assert_close(vector.double().cpu(), truth, **close)
    return [t.cpu() for t in (work, *vectors)]


def check_rows(target, x, other, normalize, work_dtype, grad=None):
    _, inverse_norm, factor, _ = check_prepare(target, x, normalize, work_dtype)
    _, other_inverse_norm, _, _ = check_prepare(target, other, normalize, work_dtype)
    pair = (x, other, inverse_norm, other_inverse_norm)
    cosine = target.ops.diagonal(*(t.to(target.device) for t in pair))
    truth = plain.diagonal(*(t.double() for t in pair))
    norms = ((x, inverse_norm), (other, other_inverse_norm))
    lengths = [(t.double() * n.double()[:, None]).norm(dim=1) for t, n in norms]
    assert cosine.dtype == inverse_norm.dtype
    tight = 2e-15 if inverse_norm.dtype == F64 else 1e-6
    error = (cosine.double().cpu() - truth).abs()
    assert (error <= tight * lengths[0] * lengths[1]).all()

    grad = torch.randn(x.shape, dtype=inverse_norm.dtype) if grad is None else grad
    diagonal = torch.randn_like(inverse_norm)
    coefficient = torch.tensor([0.37], dtype=grad.dtype)
    arguments = (grad, *pair, factor, diagonal, coefficient)
    grad_x, dot = target.ops.finish(*(t.to(target.device) for t in arguments), normalize)
    exact, exact_dot = plain.finish(*(t.double() for t in arguments), normalize)
    assert grad_x.dtype == x.dtype
    assert dot.dtype == grad.dtype
    step = torch.finfo(x.dtype).eps
    # What the sums are made of, in the same order of magnitude as grad_x before it cancels.
    inverse_factor = torch.where(factor == 0, 0.0, 1 / factor).double()
    unit = grad.double().norm(dim=1) * inverse_factor + diagonal.double().abs() * lengths[1]
    error = (dot.double().cpu() - exact_dot).abs()
    assert (error <= 2 * tight * lengths[0] * unit).all()
    size = 0.37 * unit * (inverse_norm.double() * (1 + lengths[0] ** 2) if normalize else 1)
    error = (grad_x.double().cpu() - exact).abs()
    assert (error <= step * exact.abs() + 4 * tight * size[:, None] + 1e-7 * (step > 1e-5)).all()


ROW_TYPES = [
    *((F32, F16), (F32, None), (F32, F32), (F16, F16), (F16, BF16), (BF16, BF16), (BF16, F16)),
    *((BF16, None), (F64, F64)),
]


def case_rows(target):
    for shape in target.row_shapes:
        for dtype, work_dtype in ROW_TYPES:
            if target.name == "cpu" and dtype == F64:
                continue
            x, other = (torch.randn(shape).to(dtype) for _ in range(2))
            for normalize in (True, False):
                check_rows(target, x, other, normalize, work_dtype)


def case_rows_of_extreme_norms(target):
    x = torch.randn(7, 40)
    x[1], x[2], x[3] = 0, x[2] * 1e30, x[3] * 1e-30
    # The largest binade of which inverses are not zero. Not at its edge, where rounding of the norm
    # decides which power of two scales the row.
    x[4] *= 1.5 * 2.0**126 / x[4].norm()
    other = torch.randn(7, 40)
    check_rows(target, x, other, True, F16)
    check_rows(target, x[:4], other[:4], True, F32)
    work, _, factor, norm = check_prepare(target, x, True, F16)
    lengths = work.double().norm(dim=1)[[0, 2, 3, 4, 5, 6]]
    assert ((lengths > 0.999) & (lengths < 2.001)).all()
    assert factor[1] == norm[1] == 0
    bad = torch.randn(4, 5)
    bad[0, 1], bad[2, 2], bad[3, 0] = math.nan, math.inf, -math.inf
    if target.name == "cpu":
        bad = bad[:2]  # of an infinite entry it makes a NaN at once
    check_prepare(target, bad, True, F32)
    check_prepare(target, bad, False, None)
    wide = torch.randn(3, 3000)
    wide[0], wide[1] = wide[0] * 1e30, 0
    check_prepare(target, wide, True, None)


def case_rows_are_scaled_by_powers_of_two(target):
    x = torch.randn(6, 33) * torch.tensor([1e30, 1e-30, 1.0, 3.0, 0.0, 2.0])[:, None]
    x[5] = torch.nn.functional.one_hot(torch.tensor(0), 33) * 4.0
    work, _, factor, _ = check_prepare(target, x, True, F32)
    ratio = work / x
    assert (torch.frexp(ratio[ratio.isfinite() & (ratio != 0)]).mantissa == 0.5).all()
    lengths = work.double().norm(dim=1)
    assert ((lengths >= 1 - 1e-6) & (lengths < 2)).logical_or(lengths == 0).all()
    there = lengths > 0
    torch.testing.assert_close(factor[there].double(), 1 / lengths[there], rtol=1e-6, atol=0)


def case_rows_strided(target):
    for dtype in (F32, BF16):
        x = torch.randn(6, 3, 40).to(dtype)[:, 1]
        other = torch.randn(40, 6).to(dtype).t()
        check_rows(target, x, other, True, F16, torch.randn(40, 6).t())
        odd = torch.randn(6, 83).to(dtype)
        check_rows(target, odd[:, 1:41], odd[:, 42:82], True, None)


CASES = {
    name.removeprefix("case_"): case
    for name, case in dict(globals()).items()
    if name.startswith("case_")
}
