"""The contrastive operators on the CPU and in plain torch, against plain torch in float64."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from clipfast.ops import contrastive
from clipfast.ops.contrastive import impls, operators, plain

HERE = [name for name in contrastive.available_impls("cpu") if name != "triton"]
HAS_BFLOAT16 = "cpu" in HERE and impls.HAS_BFLOAT16_PRODUCT
WORKSPACE = 1 << 20
SHAPES = [(1, 1, 2, 0), (7, 7, 124, 0), (5, 12, 4, 3), (123, 252, 64, 100), (300, 517, 130, 111)]


def make_strip(rows, columns, width, first_column, dtype=torch.float32, scale=14.3):
    """The first six arguments of statistics and gradients."""
    generator = torch.Generator().manual_seed(rows + columns)
    x = torch.randn(rows, width, generator=generator)
    y = torch.randn(columns, width, generator=generator)
    y[first_column : first_column + rows] += x
    x, y = x.to(dtype), y.to(dtype)
    factors = [1.0 / t.float().norm(dim=1) for t in (x, y)]
    return [x, y, *factors, torch.tensor([scale]), torch.tensor([scale])]


def in_float64(tensors):
    return [t.double() for t in tensors]


def lse(maximum, total):
    return maximum.double() + total.double().log()


def relative(value, truth):
    return ((value.double() - truth).norm() / truth.norm().clamp_min(1e-30)).item()


def check_strip(impl, shape, keep, strip, lse_limit, gradient_limit):
    """Statistics and gradients of an implementation against plain torch in float64."""
    first = shape[3]
    ops = operators(impl)
    *sums, shift, kept = ops.statistics(*strip, first, keep, WORKSPACE)
    *truth, _, none = plain.statistics(*in_float64(strip), first, False, WORKSPACE)
    vectors = [lse(*truth[:2]), lse(*truth[2:])]
    for value, exact in zip((lse(*sums[:2]), lse(*sums[2:])), vectors, strict=True):
        torch.testing.assert_close(value, exact, rtol=0, atol=lse_limit)
    # Without a single term the logarithm is -inf: any number will do in the gradients.
    vectors = [v.clamp_min(-1e4) for v in vectors]
    single = [v.float() for v in vectors]
    got = ops.gradients(*strip, shift, *single, kept, first, True, True, WORKSPACE)
    want = plain.gradients(
        *in_float64(strip), shift.double(), *vectors, none, first, True, True, WORKSPACE
    )
    for value, exact in zip(got, want, strict=True):
        assert relative(value, exact) <= gradient_limit


@pytest.mark.parametrize("impl", HERE)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("scale", [14.3, 100.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_strip_operators_equal_plain_torch_in_fp64(impl, shape, keep, scale, dtype):
    if impl == "cpu" and dtype == torch.bfloat16 and not HAS_BFLOAT16:
        pytest.skip("no instructions for products of bfloat16")
    is_rounded = dtype == torch.bfloat16 and impl == "cpu"
    strip = make_strip(*shape, dtype, scale)
    limits = (3e-6 + scale * 2e-7, 3e-3 if is_rounded else 1e-6 + scale * 2e-7)
    check_strip(impl, shape, keep, strip, *limits)


@pytest.mark.parametrize("impl", HERE)
@pytest.mark.parametrize(("want_rows", "want_columns"), [(True, False), (False, True)])
def test_strip_gradients_make_only_what_is_wanted(impl, want_rows, want_columns):
    strip = make_strip(9, 20, 12, 4)
    ops = operators(impl)
    *sums, shift, kept = ops.statistics(*strip, 4, False, WORKSPACE)
    vectors = [lse(*sums[:2]).float(), lse(*sums[2:]).float()]
    both = ops.gradients(*strip, shift, *vectors, kept, 4, True, True, WORKSPACE)
    some = ops.gradients(*strip, shift, *vectors, kept, 4, want_rows, want_columns, WORKSPACE)
    for value, whole, is_wanted in zip(some, both, (want_rows, want_columns), strict=True):
        assert torch.equal(value, whole) if is_wanted else value.shape == (0,)


@pytest.mark.parametrize("impl", HERE)
def test_strip_statistics_fall_back_to_maxima_where_a_shift_underflows(impl):
    strip = make_strip(30, 50, 16, 5, scale=100.0)
    strip[0], strip[1] = strip[0].abs(), -strip[1].abs()
    *sums, shift, _ = operators(impl).statistics(*strip, 5, False, WORKSPACE)
    *truth, _, _ = plain.statistics(*in_float64(strip), 5, False, WORKSPACE)
    assert shift.isnan().all()
    torch.testing.assert_close(lse(*sums[:2]), lse(*truth[:2]), rtol=0, atol=5e-5)
    torch.testing.assert_close(lse(*sums[2:]), lse(*truth[2:]), rtol=0, atol=5e-5)


@pytest.mark.skipif("cpu" not in HERE, reason="the extension has not been built")
def test_strip_statistics_use_one_shift_where_it_holds():
    strip = make_strip(30, 50, 16, 5)
    assert operators("cpu").statistics(*strip, 5, False, WORKSPACE)[4].isfinite().all()


@pytest.mark.parametrize("impl", HERE)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("rows", "width"), [(1, 1), (5, 7), (64, 100), (3, 4096)])
@pytest.mark.parametrize("normalize", [True, False])
def test_row_operators_equal_plain_torch_in_fp64(impl, dtype, rows, width, normalize):
    ops = operators(impl)
    x, y = (torch.randn(rows, width).to(dtype) for _ in range(2))
    x[0] *= 100
    prepared = [ops.prepare(t, normalize, torch.float32) for t in (x, y)]
    for got, t in zip(prepared, (x, y), strict=True):
        want = plain.prepare(t.double(), normalize, torch.float64)
        for value, exact in zip(got, want, strict=True):
            torch.testing.assert_close(value.double(), exact, rtol=1e-6, atol=1e-7)
    vectors = [got[1] for got in prepared]
    cosine = ops.diagonal(x, y, *vectors).double()
    exact = plain.diagonal(x.double(), y.double(), *in_float64(vectors))
    torch.testing.assert_close(cosine, exact, rtol=1e-5, atol=1e-5 * (1 + exact.abs().max()))

    arguments = [torch.randn(rows, width), x, y, *vectors, prepared[0][2], torch.randn(rows)]
    arguments.append(torch.tensor([0.37]))
    got = ops.finish(*arguments, normalize)
    want = plain.finish(*in_float64(arguments), normalize)
    limit = {torch.float32: 2e-6, torch.bfloat16: 4e-3, torch.float16: 5e-4}[dtype]
    assert got[0].dtype == dtype
    assert (got[0].double() - want[0]).norm() <= limit * (want[0].norm() + 1e-3)
    assert (got[1].double() - want[1]).abs().max() <= 1e-5 * (want[1].abs().max() + width)


@pytest.mark.parametrize("impl", HERE)
def test_prepare_scales_rows_by_powers_of_two(impl):
    x = torch.randn(6, 33) * torch.tensor([1e30, 1e-30, 1.0, 3.0, 0.0, 2.0])[:, None]
    x[5] = torch.nn.functional.one_hot(torch.tensor(0), 33) * 4.0
    work, inverse_norm, factor, norm = operators(impl).prepare(x, True, torch.float32)
    ratio = work / x
    mantissas = torch.frexp(ratio[ratio.isfinite() & (ratio != 0)]).mantissa
    assert (mantissas == 0.5).all()
    lengths = work.double().norm(dim=1)
    assert ((lengths >= 1 - 1e-6) & (lengths < 2)).logical_or(lengths == 0).all()
    torch.testing.assert_close(
        factor[lengths > 0].double(), 1 / lengths[lengths > 0], rtol=1e-6, atol=0
    )
    assert factor[4] == inverse_norm[4] == norm[4] == 0


@pytest.mark.parametrize("impl", HERE)
def test_contrastive_operators_pass_opcheck(impl):
    ops = operators(impl)
    strip = make_strip(6, 10, 8, 2)
    *sums, shift, kept = ops.statistics(*strip, 2, True, WORKSPACE)
    vectors = [lse(*sums[:2]).float(), lse(*sums[2:]).float()]
    x, y = strip[0], strip[1][:6].contiguous()
    factors = [strip[2], strip[3][:6].contiguous()]
    diagonal, coefficient = torch.randn(6), torch.tensor([0.5])
    calls = [
        (ops.prepare, (x, True, torch.float32)),
        (ops.prepare, (x, False, None)),
        (ops.diagonal, (x, y, *factors)),
        (ops.statistics, (*strip, 2, False, WORKSPACE)),
        (ops.statistics, (*strip, 2, True, WORKSPACE)),
        (ops.gradients, (*strip, shift, *vectors, kept, 2, True, False, WORKSPACE)),
        (ops.finish, (torch.randn(6, 8), x, y, *factors, factors[0], diagonal, coefficient, True)),
    ]
    for operator, arguments in calls:
        utils = ["test_schema", "test_autograd_registration", "test_faketensor"]
        # Compares with ==, which the NaN of a shift that is not used fails.
        if not (operator is ops.statistics and shift.isnan()):
            utils.append("test_aot_dispatch_dynamic")
        torch.library.opcheck(operator, arguments, test_utils=utils)


class CountProducts(TorchDispatchMode):
    """FLOP of matrix products, those in place included."""

    flop = 0

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        if function.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm):
            left, right = arguments[-2:]
        elif function.overloadpacket is torch.ops.aten.addmm_:
            left, right = arguments[1:3]
        else:
            return function(*arguments, **(options or {}))
        self.flop += 2 * left.shape[0] * left.shape[1] * right.shape[1]
        return function(*arguments, **(options or {}))


@pytest.mark.parametrize(("keep", "products"), [(True, 3), (False, 4)])
def test_strip_takes_six_or_eight_flop_a_logit_and_width(keep, products):
    rows, columns, width = 40, 70, 16
    strip = make_strip(rows, columns, width, 3)
    with CountProducts() as counter:
        *sums, shift, kept = plain.statistics(*strip, 3, keep, WORKSPACE)
        vectors = [lse(*sums[:2]).float(), lse(*sums[2:]).float()]
        plain.gradients(*strip, shift, *vectors, kept, 3, True, True, WORKSPACE)
    assert counter.flop == products * 2 * rows * columns * width


CAPABILITY_SCRIPT = """
import torch
from clipfast import _C
from tests.ops.test_contrastive import SHAPES, check_strip, make_strip

for threads in (1, 2):
    torch.set_num_threads(threads)
    for shape in SHAPES:
        for keep in (True, False):
            check_strip("cpu", shape, keep, make_strip(*shape), 6e-6, 4e-6)
print(_C.cpu_capability, _C.has_bfloat16_product)
"""


@pytest.mark.skipif("cpu" not in HERE, reason="the extension has not been built")
@pytest.mark.parametrize("capability", ["default", "avx2"])
def test_strip_operators_on_lesser_processors(capability):
    done = subprocess.run(
        [sys.executable, "-c", CAPABILITY_SCRIPT],
        capture_output=True,
        text=True,
        env={**os.environ, "CLIPFAST_CPU_CAPABILITY": capability},
    )
    if "asks for more" in done.stderr:
        pytest.skip(f"this machine has no {capability}")
    assert done.stdout.split() == [capability, "False"], done.stderr
