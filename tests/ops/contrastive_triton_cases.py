"""Checks of the contrastive loss in Triton against fp64, for tests/ops/test_contrastive_triton.py.

Each `case_*` takes a device. As a program, under TRITON_INTERPRET=1, this file runs them all on the
CPU with small tiles; on a GPU they run with the tiles that serve there, some at larger sizes.
"""

from __future__ import annotations

import contextlib

import torch

from clipfast.ops.contrastive import plain
from tests.ops.triton_tools import run_cases

# Largest relative error of rounding Q. The interpreter cuts bf16 off where a GPU rounds to nearest.
ROUNDING = {
    "cuda": {torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8, torch.float32: 0.0},
    "cpu": {torch.float16: 2.0**-11, torch.bfloat16: 2.0**-7, torch.float32: 0.0},
}
PLENTY = 1 << 28  # bytes: one wave


def kernels():
    from clipfast.kernels.contrastive import launch

    return launch


def make_features(rows, dim, dtype, device, normalize=True, spread=1.0):
    raw = torch.randn(rows, dim, dtype=torch.float64) * spread
    work, _, factor, _ = plain.prepare(raw.float(), normalize, dtype)
    return work.to(device), factor.to(device)


def make_strip(rows, columns, dim, dtype, device, scale=14.3, normalize=True, spread=1.0):
    """x, y, row_factor, column_factor, scale, bound."""
    x, f = make_features(rows, dim, dtype, device, normalize, spread)
    y, g = make_features(columns, dim, dtype, device, normalize, spread)
    return with_bound(x, y, f, g, scale)


def with_bound(x, y, f, g, scale):
    lengths = [(t.double().norm(dim=1) * k).max() for t, k in ((x, f), (y, g))]
    bound = (lengths[0] * lengths[1] * scale * (1 + 1e-6)).float().reshape(1)
    return x, y, f, g, torch.tensor([scale], dtype=torch.float32, device=x.device), bound


def wide(tensors):
    return [t.double() for t in tensors]


def check_statistics(strip, first_column, keep, workspace, is_fixed):
    """Compares with fp64 and returns (results, what the reference gave)."""
    x, y, _, _, _, bound = strip
    got = kernels().launch_statistics(*strip, first_column, keep, workspace)
    again = kernels().launch_statistics(*strip, first_column, keep, workspace)
    assert all(torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in zip(got, again, strict=True))
    true = plain.statistics(*wide(strip), first_column, True, PLENTY)
    size = float(bound.double())
    for i, length in ((0, x.shape[0]), (2, y.shape[0])):
        largest, total = got[i].double(), got[i + 1].double()
        assert largest.shape == total.shape == (length,)
        assert got[i].dtype == got[i + 1].dtype == torch.float32
        torch.testing.assert_close(
            largest + total.log(), true[i] + true[i + 1].log(), rtol=0, atol=1e-6 + 1e-6 * size
        )
        if is_fixed:
            assert (got[i] == got[4]).all()
        assert ((total > 0) | (largest == 0)).all()  # over nothing: maximum 0, sum 0
    assert got[4].shape == (1,)
    assert bool(got[4].isfinite()) == is_fixed
    if keep:
        check_kept(got[5], true[5], x.dtype, size)
    else:
        assert got[5].shape == (0,)
    return got, true


def check_kept(kept, logits, dtype, bound):
    assert kept.shape == logits.shape
    if dtype == torch.float32:
        assert kept.dtype == torch.float32
        torch.testing.assert_close(kept.double(), logits, rtol=0, atol=1e-6 * bound)
    else:
        assert kept.dtype == torch.int16
        step = bound / 32767
        error = (kept.double() * step - logits).abs().max()
        assert error <= step * 0.51 + 1e-6 * bound


def full_lse(strip, true, first_column):
    """Row and column log-sum-exp in fp64, pairs included."""
    row = torch.arange(strip[0].shape[0], device=strip[0].device)
    pair = true[5][row, row + first_column]
    row_lse = torch.logaddexp(true[0] + true[1].log(), pair)
    column_lse = true[2] + true[3].log()
    column_lse[row + first_column] = torch.logaddexp(column_lse[row + first_column], pair)
    return row_lse, column_lse


def check_gradients(strip, first_column, got, true, workspace):
    """Each element's error against the sum of the absolute terms that it is made of."""
    x, y, f, g, scale, bound = strip
    lse = [t.float() for t in full_lse(strip, true, first_column)]
    shift, kept = got[4], got[5]
    shared = (first_column, True, True)
    reference = (f.double(), g.double(), scale.double(), bound.double(), true[4], *wide(lse))
    # Logits are given, so that the truth and the sum of absolute values share them.
    exact = plain.gradients(x.double(), y.double(), *reference, true[5], *shared, PLENTY)
    terms = plain.gradients(
        x.double().abs(), y.double().abs(), *reference, true[5], *shared, PLENTY
    )
    size = float(bound.double())
    rate = 1.01 * ROUNDING[x.device.type][x.dtype] + 2e-6 + 1e-6 * size
    if kept.numel() and x.dtype != torch.float32:
        rate += size / 65000
    least = 2.0**-39 if x.dtype == torch.float16 else 1e-38  # half of fp16's smallest over 2^14

    def run(want_rows, want_columns):
        return kernels().launch_gradients(
            *strip, shift, *lse, kept, first_column, want_rows, want_columns, workspace
        )

    results = run(True, True)
    for result, truth, bound_of, other in zip(results, exact, terms, (y, x), strict=True):
        assert result.dtype == torch.float32
        floor = least * other.double().abs().sum(dim=0)
        error = (result.double() - truth).abs()
        assert (error <= rate * bound_of + floor).all(), float((error / bound_of).max())
    for wanted in ((True, False), (False, True), (False, False)):
        for given, again, want in zip(results, run(*wanted), wanted, strict=True):
            assert torch.equal(again, given) if want else again.shape == (0,)


def check_strip(strip, first_column=0, workspace=PLENTY, is_fixed=True, keeps=(False, True)):
    for keep in keeps:
        got, true = check_statistics(strip, first_column, keep, workspace, is_fixed)
        check_gradients(strip, first_column, got, true, workspace)


@contextlib.contextmanager
def least_wave(rows):
    from clipfast.kernels.contrastive import walk

    before, walk.LEAST_WAVE_ROWS = walk.LEAST_WAVE_ROWS, rows
    try:
        yield
    finally:
        walk.LEAST_WAVE_ROWS = before


def case_shapes(device, dtype=torch.float16):
    shapes = [(1, 1, 7, 0), (1, 2, 1, 1), (7, 7, 64, 0), (5, 12, 1, 3), (17, 33, 257, 16)]
    if device == "cuda":
        shapes += [(129, 257, 100, 128), (507, 1000, 252, 3), (1000, 3000, 512, 1000)]
    for rows, columns, dim, first_column in shapes:
        strip = make_strip(rows, columns, dim, dtype, device)
        check_strip(strip, first_column, is_fixed=rows > 1)


def case_many_tiles(device):
    check_strip(make_strip(123, 252, 100, torch.float16, device), 100)


def case_bf16(device):
    case_shapes(device, torch.bfloat16)


def case_fp32(device):
    case_shapes(device, torch.float32)


def case_tf32(device):
    """Only that it runs and is near: 10 bits of mantissa on a GPU, exact when interpreted."""
    strip = make_strip(20, 40, 64, torch.float32, device)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        got = kernels().launch_statistics(*strip, 3, False, PLENTY)
    finally:
        torch.set_float32_matmul_precision(before)
    true = plain.statistics(*wide(strip), 3, True, PLENTY)
    torch.testing.assert_close(
        got[0] + got[1].log(), (true[0] + true[1].log()).float(), rtol=0, atol=0.02
    )


def case_waves(device):
    rows, columns, tile = (1000, 1500, 256) if device == "cuda" else (40, 50, 16)
    with least_wave(tile):
        for scale, normalize, spread in ((14.3, True, 1.0), (1.0, False, 5.0)):
            strip = make_strip(rows, columns, 64, torch.float16, device, scale, normalize, spread)
            check_strip(strip, 3, workspace=1, is_fixed=normalize)


def case_waves_are_whole_tiles_of_about_equal_length(device):
    from clipfast.kernels.contrastive.waves import waves

    assert list(waves(1000, 300, 16)) == [(0, 256), (256, 512), (512, 768), (768, 1000)]
    assert list(waves(5, 0, 16)) == [(0, 5)]


def case_underflow_antipodal(device):
    for dtype in (torch.float16, torch.float32):
        direction = torch.randn(1, 64)
        x, _, f, _ = plain.prepare(direction + 0.05 * torch.randn(20, 64), True, dtype)
        y, _, g, _ = plain.prepare(-direction + 0.05 * torch.randn(40, 64), True, dtype)
        # At 80, sums are about 2^-110 under the fixed shift: not zero yet, and not to be trusted.
        for scale in (80.0, 100.0):
            strip = with_bound(*(t.to(device) for t in (x, y, f, g)), scale)
            check_strip(strip, 3, is_fixed=False, keeps=(scale == 100.0,))


def case_underflow_not_normalised(device):
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        strip = make_strip(20, 40, 64, dtype, device, 2.0, False, 2.0)
        assert 300 < float(strip[5]) < 1200
        check_strip(strip, 3, is_fixed=False)


def case_large_scale_keeps_the_shift(device):
    strip = make_strip(20, 40, 64, torch.float16, device, 100.0)
    got, _ = check_statistics(strip, 3, False, PLENTY, True)
    assert float(got[4]) > 10


def case_scale_of_zero(device):
    check_strip(make_strip(5, 12, 64, torch.float16, device, 0.0), 3)


def case_zero_rows(device):
    x, y, f, g, _, _ = make_strip(5, 12, 64, torch.float16, device)
    x[1], f[1], y[4], g[4] = 0, 0, 0, 0
    strip = with_bound(x, y, f, g, 14.3)
    check_strip(strip, 3)
    results = kernels().launch_gradients(
        *strip,
        torch.zeros(1, device=device),
        *(torch.full((n,), 3.0, device=device) for n in (5, 12)),
        torch.empty(0, device=device),
        *(3, True, True, PLENTY),
    )
    assert (results[0][1] == 0).all()
    assert (results[1][4] == 0).all()


def case_nan_features(device):
    for bad_bound in (False, True):
        x, y, f, g, scale, bound = make_strip(20, 40, 64, torch.float16, device)
        x[2, 1] = float("nan")
        if bad_bound:
            bound = bound * float("nan")
        strip = (x, y, f, g, scale, bound)
        for keep in {False, bad_bound}:
            got = kernels().launch_statistics(*strip, 3, keep, PLENTY)
            true = plain.statistics(*wide(strip), 3, True, PLENTY)
            assert got[4].isnan()
            for i in (0, 2):
                lse, exact = (t[i].double() + t[i + 1].double().log() for t in (got, true))
                torch.testing.assert_close(lse, exact, rtol=0, atol=1e-5, equal_nan=True)
            assert got[1][2].isnan()
            lse = [t.float() for t in full_lse(strip, true, 3)]
            results = kernels().launch_gradients(
                *strip, got[4], *lse, got[5], 3, True, True, PLENTY
            )
            assert all(t.isnan().all() for t in results)


def case_strided_features(device):
    x, y, f, g, scale, bound = make_strip(7, 12, 40, torch.float16, device)
    spaced = torch.stack([x, x * 2], dim=1)[:, 0]
    turned = y.t().contiguous().t()
    plainly = kernels().launch_statistics(x, y, f, g, scale, bound, 3, False, PLENTY)
    strided = kernels().launch_statistics(spaced, turned, f, g, scale, bound, 3, False, PLENTY)
    assert all(torch.equal(a, b) for a, b in zip(plainly, strided, strict=True))


def case_second_rule_takes_the_same_walk(device):
    """A rule that kernels/ does not know, against fp64: sums, and products with its weights."""
    from clipfast.kernels.contrastive import walk
    from tests.ops.sigmoid_rule_triton import SIGMOID

    bias = torch.tensor([-1.5], device=device)
    sizes = [(1, 1, 7, 0, PLENTY), (17, 33, 100, 16, PLENTY), (40, 50, 64, 3, 1)]
    if device == "cuda":
        sizes += [(507, 1000, 252, 3, PLENTY), (1000, 3000, 512, 1000, 1)]
    for rows, columns, dim, first_column, workspace in sizes:
        for dtype in (torch.float16, torch.float32):
            for keep in (False, True):
                tensors = make_strip(rows, columns, dim, dtype, device)
                strip = walk.Strip(*tensors, first_column)
                with least_wave(256 if device == "cuda" else 16):
                    check_second_rule(walk, strip, SIGMOID, bias, keep, workspace)


def check_second_rule(walk, strip, rule, bias, keep, workspace):
    x, y, f, g, scale, bound = wide(strip[:6])
    row = torch.arange(strip.rows, device=x.device)
    logits = scale * (x @ y.T) * f[:, None] * g
    terms = torch.nn.functional.softplus(logits + bias.double())
    sigmoid = torch.sigmoid(logits + bias.double())
    row_value = torch.rand(strip.rows, device=x.device) + 0.5
    weights = row_value.double()[:, None] * sigmoid * f[:, None] * g
    for matrix in (terms, sigmoid, weights):
        matrix[row, row + strip.first_column] = 0.0

    sums, kept = walk.sum_terms(strip, rule, keep, workspace, bias)
    assert not sums.row_base.any()
    assert not sums.column_base.any()
    torch.testing.assert_close(sums.row_sum.double(), terms.sum(1), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(sums.column_sum.double(), sigmoid.sum(0), rtol=1e-5, atol=1e-6)

    values = (torch.zeros_like(bias), row_value, torch.empty_like(strip.column_factor), kept)
    got = walk.weighted_products(strip, rule, *values, True, True, workspace, bias)
    exact = (weights @ y, weights.T @ x)
    terms_of = (weights @ y.abs(), weights.T @ x.abs())
    rate = 1.01 * ROUNDING[x.device.type][strip.x.dtype] + 1e-5
    if keep and strip.x.dtype == torch.float16:
        rate += float(bound) / 65000
    for product, truth, size in zip(got, exact, terms_of, strict=True):
        assert product.dtype == torch.float32
        assert ((product.double() - truth).abs() <= rate * size + 1e-7).all()


def check_prepare(x, normalize, work_dtype):
    from clipfast.kernels.contrastive.launch import launch_prepare

    work, *vectors = launch_prepare(x, normalize, work_dtype)
    true_work, *true_vectors = plain.prepare(x.double(), normalize, work_dtype)
    if work_dtype is None:
        assert work.shape == (0,)
    else:
        assert work.dtype == work_dtype
        assert work.is_contiguous()
        torch.testing.assert_close(work, true_work, rtol=0, atol=0, equal_nan=True)
    accumulate = torch.float64 if x.dtype == torch.float64 else torch.float32
    for vector, truth in zip(vectors, true_vectors, strict=True):
        assert vector.dtype == accumulate
        torch.testing.assert_close(vector.double(), truth, rtol=1e-6, atol=0, equal_nan=True)
    return work, *vectors


def check_rows(x, other, normalize, work_dtype):
    from clipfast.kernels.contrastive.launch import launch_diagonal, launch_finish

    _, inverse_norm, factor, _ = check_prepare(x, normalize, work_dtype)
    _, other_inverse_norm, _, _ = check_prepare(other, normalize, work_dtype)
    cosine = launch_diagonal(x, other, inverse_norm, other_inverse_norm)
    arguments = (x, other, inverse_norm, other_inverse_norm)
    truth = plain.diagonal(*wide(arguments))
    lengths = [(t.double() * n.double()[:, None]).norm(dim=1) for t, n in zip(*[iter(
        (x, inverse_norm, other, other_inverse_norm))] * 2, strict=True)]  # fmt: skip
    assert cosine.dtype == inverse_norm.dtype
    assert ((cosine.double() - truth).abs() <= 1e-6 * lengths[0] * lengths[1]).all()

    grad = torch.randn(x.shape, dtype=inverse_norm.dtype, device=x.device)
    diagonal = torch.randn_like(inverse_norm)
    coefficient = torch.tensor([0.37], dtype=grad.dtype, device=x.device)
    arguments = (grad, *arguments, factor, diagonal, coefficient)
    grad_x, dot = launch_finish(*arguments, normalize)
    exact, exact_dot = plain.finish(*wide(arguments), normalize)
    assert grad_x.dtype == x.dtype
    assert dot.dtype == grad.dtype
    step = torch.finfo(x.dtype).eps
    # What the sums are made of, in the same order of magnitude as grad_x before it cancels.
    inverse_factor = torch.where(factor == 0, 0.0, 1 / factor).double()
    unit = grad.double().norm(dim=1) * inverse_factor + diagonal.double().abs() * lengths[1]
    assert ((dot.double() - exact_dot).abs() <= 2e-6 * lengths[0] * unit).all()
    size = 0.37 * unit * (inverse_norm.double() * (1 + lengths[0] ** 2) if normalize else 1)
    error = (grad_x.double() - exact).abs()
    assert (error <= step * exact.abs() + 4e-6 * size[:, None] + 1e-7 * (step > 1e-5)).all()


def case_rows(device):
    half, single, double = torch.float16, torch.float32, torch.float64
    kinds = [(single, half), (half, half), (torch.bfloat16, torch.bfloat16), (single, None)]
    kinds += [(torch.bfloat16, half), (double, double)]
    for shape in [(1, 1), (7, 3), (123, 7), (5, 252), (3, 507), (2, 1024), (2, 4096)]:
        for dtype, work_dtype in kinds:
            x, other = (torch.randn(shape).to(device, dtype) for _ in range(2))
            for normalize in (True, False):
                check_rows(x, other, normalize, work_dtype)


def case_rows_of_extreme_norms(device):
    from clipfast.kernels.contrastive.launch import launch_prepare

    x = torch.randn(7, 40, device=device)
    x[1], x[2], x[3] = 0, x[2] * 1e30, x[3] * 1e-30
    x[4] *= 2.0**127 / x[4].norm()
    other = torch.randn(7, 40, device=device)
    check_rows(x, other, True, torch.float16)
    check_rows(x[:4], other[:4], True, torch.float32)
    work, _, factor, norm = launch_prepare(x, True, torch.float16)
    lengths = work.double().norm(dim=1)[[0, 2, 3, 4, 5, 6]]
    assert ((lengths > 0.999) & (lengths < 2.001)).all()
    assert factor[1] == norm[1] == 0
    bad = torch.randn(4, 5, device=device)
    bad[0, 1], bad[2, 2], bad[3, 0] = float("nan"), float("inf"), float("-inf")
    check_prepare(bad, True, torch.float32)
    check_prepare(bad, False, None)


def case_rows_strided(device):
    x = torch.randn(6, 3, 40, device=device)[:, 1]
    other = torch.randn(40, 6, device=device).t()
    check_rows(x, other, True, torch.float16)


CASES = [name.removeprefix("case_") for name in dict(globals()) if name.startswith("case_")]


def run_interpreted():
    """Runs the cases with small tiles for every architecture."""
    from clipfast.kernels.contrastive import configs

    for arch, kernel, width in configs.TABLE:
        tile = configs.Config(16, 32, 64, 2, 4, 1)
        configs.TABLE[arch, kernel, width] = tile
    run_cases({name: globals()[f"case_{name}"] for name in CASES})


if __name__ == "__main__":
    run_interpreted()
