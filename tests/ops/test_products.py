"""Linear layers and batched products in float32 on the CPU, by either library."""

from __future__ import annotations

import math
import os
import subprocess
import sys

import pytest
import torch
from torch.nn import functional as F

from clipfast.ops import products
from clipfast.ops.products import library

has_onednn = pytest.mark.skipif(not library.has_onednn(), reason="needs AVX-512")
LIBRARIES = ["mkl", pytest.param("onednn", marks=has_onednn)]
# Rows, width, columns: single ones, odd ones, around a panel's 64 columns, a step's 64 rows, a
# block's 256 and a sum's 128 terms.
SHAPES = [
    *((1, 1, 1), (1, 7, 3), (2, 129, 1), (5, 1, 64), (3, 64, 65), (17, 128, 63), (63, 100, 130)),
    *((65, 257, 64), (256, 127, 100), (300, 384, 96), (513, 130, 66), (1000, 64, 200)),
]


@pytest.fixture(params=LIBRARIES)
def chosen(request):
    """Each library throughout, for one test."""
    before = products.current_libraries()
    products.set_libraries(products.Libraries.all(request.param))
    yield request.param
    products.set_libraries(before)


def error(value: torch.Tensor, truth: torch.Tensor, scale: torch.Tensor) -> float:
    """Largest error, relative to the sums of the terms' magnitudes."""
    return ((value.double() - truth) / scale.clamp_min(1e-300)).abs().max().item()


# A sum's error grows with its terms; blocks of 128 hold it far below 1e-7 of all magnitudes.
LIMIT = 6e-7


@pytest.mark.parametrize("lies", ["rows", "columns"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_linear_agrees_with_fp64_forward_and_backward(chosen, shape, lies):
    rows, inner, columns = shape
    x = torch.randn(rows, inner, requires_grad=True)
    weight = torch.randn(columns, inner)
    if lies == "columns":
        weight = weight.t().contiguous().t()
    weight.requires_grad_()
    bias = torch.randn(columns, requires_grad=True)
    grad = torch.randn(rows, columns)
    y = products.linear(x, weight, bias)
    found = torch.autograd.grad(y, (x, weight, bias), grad)
    xd, wd, bd, gd = (t.detach().double() for t in (x, weight, bias, grad))
    assert error(y, xd @ wd.T + bd, xd.abs() @ wd.abs().T + bd.abs()) < LIMIT
    truth = (gd @ wd, gd.T @ xd, gd.sum(0))
    scales = (gd.abs() @ wd.abs(), gd.abs().T @ xd.abs(), gd.abs().sum(0))
    for value, right, scale in zip(found, truth, scales, strict=True):
        assert error(value, right, scale) < LIMIT
    assert found[1].stride() == weight.stride() or 1 in weight.shape


@has_onednn
def test_block_product_errs_no_more_than_torchs_own_product():
    x, weight = torch.randn(1600, 768), torch.randn(2304, 768)
    truth = x.double() @ weight.double().T
    before = products.current_libraries()
    errors = {}
    for name in ("mkl", "onednn"):
        products.set_libraries(products.Libraries.all(name))
        errors[name] = (products.linear(x, weight).double() - truth).norm().item()
    products.set_libraries(before)
    assert errors["onednn"] < 1.1 * errors["mkl"]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_bmm_agrees_with_fp64_in_every_layout(chosen, shape):
    rows, inner, columns = shape
    for count in (1, 2, 5):
        for a_turned in (False, True):
            for b_turned in (False, True):
                a, b = torch.randn(count, rows, inner), torch.randn(count, inner, columns)
                a = a.mT.contiguous().mT if a_turned else a
                b = b.mT.contiguous().mT if b_turned else b
                truth, scale = a.double() @ b.double(), a.abs().double() @ b.abs().double()
                assert error(products.bmm(a, b), truth, scale) < LIMIT
                out = torch.full((count, rows, columns), math.nan)
                assert products.bmm(a, b, out=out) is out
                assert error(out, truth, scale) < LIMIT


def test_operands_of_any_strides_are_read_rightly(chosen):
    wide = torch.randn(90, 400)
    weight, grad = torch.randn(70, 100), torch.randn(30, 70)
    for x in (
        wide[:30, :100],  # rows apart
        wide[::3, 7:107],
        wide.t()[:30, :90:1][:, :90].repeat(1, 2)[:, :100],
        wide[:30, ::4],  # neither rows nor columns contiguous
        wide[:1, :100].expand(30, 100),
        wide.as_strided((30, 100), (3, 1)),  # rows overlap
        wide.as_strided((30, 100), (1, 30)),  # columns contiguous
    ):
        truth = x.double() @ weight.double().T
        assert error(products.linear(x, weight), truth, truth.abs() + 10) < 1e-6
        _, dw, _ = torch.ops.clipfast.linear_backward(grad, x, weight, False, True)
        assert error(dw, grad.double().T @ x.double(), dw.double().abs() + 10) < 1e-6
    # What y.sum().backward() hands over: one number, expanded.
    ones = torch.ones(()).expand(30, 70)
    x = torch.randn(30, 100)
    dx, dw, db = torch.ops.clipfast.linear_backward(ones, x, weight, False, True)
    torch.testing.assert_close(dx, ones @ weight)
    torch.testing.assert_close(dw, ones.T @ x)
    torch.testing.assert_close(db, ones.sum(0))
    for narrow in (weight[:, ::2], weight.t()[:50].t(), weight[::2, :50]):
        x = torch.randn(4, narrow.shape[1])
        torch.testing.assert_close(products.linear(x, narrow), x @ narrow.T)


def test_more_or_fewer_dimensions_are_those_of_torch(chosen):
    weight, bias = torch.randn(5, 8), torch.randn(5)
    for shape in ((8,), (3, 8), (2, 3, 8), (2, 0, 8), (0, 8)):
        x = torch.randn(shape, requires_grad=True)
        y = products.linear(x, weight, bias)
        torch.testing.assert_close(y, F.linear(x, weight, bias))
        (mine,) = torch.autograd.grad(y.sum(), x)
        (right,) = torch.autograd.grad(F.linear(x, weight, bias).sum(), x)
        torch.testing.assert_close(mine, right)


def test_sizes_of_zero_give_the_bias_or_zeros(chosen):
    bias = torch.randn(3)
    assert torch.equal(
        products.linear(torch.empty(4, 0), torch.empty(3, 0), bias), bias.expand(4, 3)
    )
    assert not products.linear(torch.empty(4, 0), torch.empty(3, 0)).any()
    assert products.linear(torch.randn(4, 5), torch.empty(0, 5)).shape == (4, 0)
    assert not products.bmm(torch.empty(2, 4, 0), torch.empty(2, 0, 3)).any()
    assert products.bmm(torch.empty(0, 4, 5), torch.empty(0, 5, 3)).shape == (0, 4, 3)
    _, dw, db = torch.ops.clipfast.linear_backward(
        torch.empty(0, 3), torch.empty(0, 5), torch.randn(3, 5), False, True
    )
    assert dw.shape == (3, 5)
    assert not dw.any()
    assert not db.any()


@has_onednn
def test_bits_do_not_depend_on_the_number_of_threads():
    x, weight, grad = torch.randn(700, 384), torch.randn(200, 384), torch.randn(700, 200)
    before, threads = products.current_libraries(), torch.get_num_threads()
    products.set_libraries(products.Libraries.all("onednn"))
    results = []
    for count in (1, 2, 3, 7):
        torch.set_num_threads(count)
        y = products.linear(x, weight, weight[:, 0])
        grads = torch.ops.clipfast.linear_backward(grad, x, weight, False, True)
        many = products.bmm(x.view(7, 100, 384), weight.t().expand(7, 384, 200))
        results.append((y, *grads, many))
    torch.set_num_threads(threads)
    products.set_libraries(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))
    # A row's bits do not depend on its neighbours either.
    assert torch.equal(products.linear(x[:77], weight), products.linear(x, weight)[:77])


def test_infinities_and_nan_stay_where_they_are(chosen):
    x, weight = torch.randn(70, 130), torch.randn(66, 130)
    x[3, 5], x[65, 129] = math.nan, math.inf
    y = products.linear(x, weight)
    assert y[3].isnan().all()
    assert y[65].isinf().all()
    assert y.isfinite().sum() == 68 * 66


def test_operators_pass_opcheck(chosen):
    ops = torch.ops.clipfast
    x, weight, bias = torch.randn(6, 9), torch.randn(4, 9), torch.randn(4)
    for b in (bias, None):
        arguments = [t if t is None else t.clone().requires_grad_() for t in (x, weight, b)]
        torch.library.opcheck(ops.linear.default, arguments)
    torch.library.opcheck(ops.linear.default, (x.view(2, 3, 9), weight.t().clone().t(), None))
    grad = torch.randn(6, 4)
    for given in ((x, weight, False, True), (None, weight, True, False), (x, None, True, True)):
        torch.library.opcheck(ops.linear_backward.default, (grad, *given))
    a, b = (t.requires_grad_() for t in (torch.randn(3, 5, 6), torch.randn(3, 6, 2)))
    torch.library.opcheck(ops.bmm.default, (a, b))
    out = torch.empty(3, 5, 2)
    torch.library.opcheck(ops.bmm_out.default, (a.detach(), b.detach(), out))


def test_first_and_second_derivatives_are_right():
    x, weight, bias = (
        torch.randn(size, dtype=torch.float64, requires_grad=True)
        for size in ((2, 3, 5), (4, 5), 4)
    )
    linear, bmm = torch.ops.clipfast.linear, torch.ops.clipfast.bmm
    assert torch.autograd.gradcheck(linear, (x, weight, bias))
    assert torch.autograd.gradgradcheck(linear, (x, weight, bias))
    a, b = (
        torch.randn(size, dtype=torch.float64, requires_grad=True)
        for size in ((2, 3, 5), (2, 5, 4))
    )
    assert torch.autograd.gradcheck(bmm, (a, b))
    assert torch.autograd.gradgradcheck(bmm, (a, b))


def test_what_is_not_float32_on_the_cpu_is_torchs(chosen):
    seen = []

    class Names(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            seen.append(func._schema.name)
            return func(*args, **(kwargs or {}))

    x, weight = torch.randn(3, 8), torch.randn(4, 8)
    with Names():
        products.linear(x, weight)
        assert "clipfast::linear" in seen
        seen.clear()
        assert products.linear(x.bfloat16(), weight.bfloat16()).dtype is torch.bfloat16
        products.linear(x.double(), weight.double())
        with torch.autocast("cpu", torch.bfloat16):
            assert products.linear(x, weight).dtype is torch.bfloat16
        products.bmm(x[None].bfloat16(), weight.t()[None].bfloat16())
    assert not any(name.startswith("clipfast::") for name in seen)


def test_linear_compiles_whole_with_its_neighbours(chosen):
    weight, bias = torch.randn(40, 24, requires_grad=True), torch.randn(40, requires_grad=True)

    def function(x):
        return products.linear(F.gelu(x), weight, bias).relu()

    x = torch.randn(33, 24, requires_grad=True)
    compiled = torch.compile(function, fullgraph=True)
    grads = [
        torch.autograd.grad(f(x).square().sum(), (x, weight, bias)) for f in (function, compiled)
    ]
    torch.testing.assert_close(function(x), compiled(x))
    for mine, right in zip(grads[1], grads[0], strict=True):
        torch.testing.assert_close(mine, right)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda o: o.linear(torch.randn(3, 4), torch.randn(5, 6), None), "weight \\[N, K\\]"),
        (lambda o: o.linear(torch.randn(3, 4), torch.randn(5, 4), torch.randn(4)), "bias \\[5\\]"),
        (lambda o: o.linear(torch.randn(3, 4), torch.randn(5, 4).double(), None), "one type"),
        (lambda o: o.bmm(torch.randn(2, 3, 4), torch.randn(2, 5, 4)), "b \\[B, K, N\\]"),
        (
            lambda o: o.bmm_out(torch.randn(2, 3, 4), torch.randn(2, 4, 4), torch.empty(2, 3, 5)),
            "contiguous out",
        ),
    ],
)
def test_wrong_arguments_are_explained(call, words):
    with pytest.raises(RuntimeError, match=words):
        call(torch.ops.clipfast)


# Who multiplies.


def test_the_race_names_a_library_for_every_class_and_leaves_no_trace():
    if not library.has_onednn():
        assert set(products.current_libraries().names.values()) == {"mkl"}
        return
    before, state = products.current_libraries(), torch.get_rng_state()
    found = library.race()
    assert set(found.names) == {f"{k}.{r}" for k in library.KINDS for r in library.ROW_CLASSES}
    assert products.current_libraries() == before
    assert torch.equal(state, torch.get_rng_state())


def test_classes_may_have_libraries_of_their_own():
    before = products.current_libraries()
    names = dict(products.Libraries.all("mkl").names)
    if library.has_onednn():
        names |= {"forward.some": "onednn", "grad_weight.many": "onednn"}
    products.set_libraries(products.Libraries(names))
    assert products.current_libraries().names == names
    for rows in (1, 5, 64, 65):
        x, weight = torch.randn(rows, 33), torch.randn(20, 33)
        torch.testing.assert_close(products.linear(x, weight), x @ weight.T)
    products.set_libraries(before)


@pytest.mark.parametrize(
    "names", [{}, {"forward.many": "mkl"}, products.Libraries.all("blis").names], ids=str
)
def test_unknown_libraries_are_refused(names):
    with pytest.raises(ValueError, match="expected one of mkl, onednn"):
        products.set_libraries(products.Libraries(names))


def run_with(**environment: str) -> subprocess.CompletedProcess[str]:

    code = (
        "from clipfast.ops import products as p; print(set(p.current_libraries().names.values()))"
    )
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )


def test_the_environment_chooses():
    assert "{'mkl'}" in run_with(CLIPFAST_CPU_PRODUCTS="mkl").stdout
    if library.has_onednn():
        assert "{'onednn'}" in run_with(CLIPFAST_CPU_PRODUCTS="onednn").stdout
    wrong = run_with(CLIPFAST_CPU_PRODUCTS="fast")
    assert "expected auto, mkl or onednn, got 'fast'" in wrong.stderr
    # Without AVX-512 there is one library, and asking for the other is explained.
    assert "{'mkl'}" in run_with(CLIPFAST_CPU_CAPABILITY="avx2").stdout
    refused = run_with(CLIPFAST_CPU_CAPABILITY="avx2", CLIPFAST_CPU_PRODUCTS="onednn")
    assert "needs AVX-512" in refused.stderr
