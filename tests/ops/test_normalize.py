"""clipfast.ops.l2_normalize on the CPU: against fp64, against the eager op, under torch.compile."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F

from clipfast.ops import l2_normalize
from clipfast.ops import normalize as ops
from clipfast.ops.normalize import plain

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
PAIRS = [(x, y) for x in DTYPES for y in DTYPES if (x == torch.float64) == (y == torch.float64)]
SHAPES = [
    *((1, 1), (7, 2), (123, 7), (5, 31), (33, 32), (3, 33), (9, 64), (4, 65), (252, 123)),
    *((64, 252), (17, 507), (31, 512), (8, 1000), (3, 4095), (2, 4096)),
]


def truth(x, grad_y):
    """y and grad_x in fp64, by torch's autograd."""
    x = x.detach().double().requires_grad_()
    y = x / x.norm(dim=1, keepdim=True)
    y.backward(grad_y.double())
    return y.detach(), x.grad


def run(op, x, grad_y):
    x = x.detach().requires_grad_()
    y = op(x)
    y.backward(grad_y)
    return y.detach(), x.grad


def errors(result, expected):
    return [(a.double() - b).abs().max().item() for a, b in zip(result, expected, strict=True)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_l2_normalize_error_is_at_most_eager(shape, dtype):
    x, grad_y = (torch.randn(shape, dtype=torch.float64).to(dtype) for _ in range(2))
    expected = truth(x, grad_y)
    ours = errors(run(l2_normalize, x, grad_y), expected)
    eager = errors(run(F.normalize, x, grad_y), expected)
    step = torch.finfo(dtype).eps
    for mine, theirs, exact in zip(ours, eager, expected, strict=True):
        assert mine <= theirs + step * max(1.0, exact.abs().max().item())


@pytest.mark.parametrize(("x_dtype", "y_dtype"), PAIRS)
def test_l2_normalize_out_dtype_rounds_once(x_dtype, y_dtype):
    x = torch.randn(12, 77, dtype=torch.float64).to(x_dtype)
    grad_y = torch.randn(12, 77, dtype=torch.float64).to(y_dtype)
    y, grad_x = run(lambda t: l2_normalize(t, out_dtype=y_dtype), x, grad_y)
    assert (y.dtype, grad_x.dtype) == (y_dtype, x_dtype)
    y_true, grad_true = truth(x, grad_y)
    # Half a step of the output type, and a few of the sums' own.
    accumulate = torch.finfo(ops.accumulate_dtype(x_dtype)).eps
    assert ((y - y_true).abs() <= (torch.finfo(y_dtype).eps / 2 + 4 * accumulate)).all()
    bound = grad_true.abs() * torch.finfo(x_dtype).eps / 2 + 8 * accumulate
    # The smallest steps of fp16 are absolute.
    assert ((grad_x - grad_true).abs() <= bound + 2.0**-25).all()


@pytest.mark.parametrize("shape", [(0, 512), (0, 0), (3, 0), (1, 1)], ids=str)
def test_l2_normalize_empty_and_single(shape):
    x = torch.randn(shape)
    y, grad_x = run(l2_normalize, x, torch.ones(shape))
    assert y.shape == grad_x.shape == x.shape
    assert y.isfinite().all()
    assert grad_x.isfinite().all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_l2_normalize_zero_row_gives_zeros_and_zero_gradient(dtype):
    x = torch.randn(5, 40).to(dtype)
    x[2] = 0
    y, grad_x = run(l2_normalize, x, torch.ones_like(x))
    assert (y[2] == 0).all()
    assert (grad_x[2] == 0).all()
    assert y.isfinite().all()
    assert grad_x.isfinite().all()
    assert (y[[0, 1, 3, 4]].abs().amax(dim=1) > 0).all()


def test_l2_normalize_eps_is_the_norm_of_a_zero_row():
    x = torch.tensor([[3.0, 4.0], [3.1, 4.1]])
    y, grad_x = run(lambda t: l2_normalize(t, eps=5.0), x, torch.tensor([[1.0, 0.0]] * 2))
    assert (y[0] == 0).all()
    assert (grad_x[0] == 0).all()
    assert y[1].norm().item() == pytest.approx(1.0)
    assert grad_x[1].abs().min() > 0


@pytest.mark.parametrize("magnitude", [1e-37, 1e-30, 1e-20, 1e18, 1e30, 1e37])
@pytest.mark.parametrize("dim", [3, 123, 512])
def test_l2_normalize_extreme_fp32_rows_keep_their_direction(magnitude, dim):
    base = torch.randn(4, dim)
    x = base * magnitude
    grad_y = torch.randn(4, dim)
    y, grad_x = run(lambda t: l2_normalize(t, eps=0.0), x, grad_y)
    y_true, grad_true = truth(x, grad_y)
    torch.testing.assert_close(y.double(), y_true, rtol=1e-6, atol=1e-7)
    scale = grad_true.abs().max()
    torch.testing.assert_close(
        grad_x / scale, grad_true / scale, rtol=1e-5, atol=1e-6, check_dtype=False
    )


def test_l2_normalize_extreme_fp64_rows_keep_their_direction():
    base = torch.randn(3, 50, dtype=torch.float64)
    for magnitude in (1e-300, 1e300):
        y = l2_normalize(base * magnitude, eps=0.0)
        torch.testing.assert_close(y, base / base.norm(dim=1, keepdim=True))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_l2_normalize_non_finite_rows_show_and_stay_in_their_row(bad):
    x = torch.randn(3, 70)
    x[1, 68] = bad
    y = l2_normalize(x)
    assert y[1, 68].isnan()
    assert y[[0, 2]].isfinite().all()


@pytest.mark.parametrize(
    "view",
    [
        lambda t: t[:, 0],  # adjacent elements, far rows: taken without a copy
        lambda t: t[:, :, 3],  # strided elements
        lambda t: t[:, 1, 1:],  # rows that start off any boundary
        lambda t: t[0].t(),
        lambda t: t[:1, 0].expand(6, -1),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_l2_normalize_non_contiguous(view, dtype):
    x = view(torch.randn(6, 9, 37).to(dtype))
    grad_y = torch.randn(x.shape[1], x.shape[0]).to(dtype).t()
    y, grad_x = run(l2_normalize, x, grad_y)
    y_dense, grad_dense = run(l2_normalize, x.contiguous(), grad_y.contiguous())
    assert torch.equal(y, y_dense)
    assert torch.equal(grad_x, grad_dense)
    assert y.is_contiguous()


def test_l2_normalize_expanded_gradient():
    x = torch.randn(5, 19, requires_grad=True)
    l2_normalize(x).sum().backward()
    _, expected = truth(x, torch.ones(5, 19))
    torch.testing.assert_close(x.grad.double(), expected, atol=1e-6, rtol=1e-5)


def test_l2_normalize_without_grad_keeps_no_graph():
    x = torch.randn(4, 8)
    assert not l2_normalize(x).requires_grad
    with torch.no_grad():
        assert not l2_normalize(x.requires_grad_()).requires_grad


def test_l2_normalize_gradcheck_fp64():
    x = torch.randn(4, 11, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(l2_normalize, (x,))


def test_l2_normalize_reference_agrees_with_torch_autograd():
    x, grad_y = torch.randn(6, 21), torch.randn(6, 21)
    x[3] = 0
    for mine, exact in zip(
        run(l2_normalize, x, grad_y), run(ops.reference, x, grad_y), strict=True
    ):
        torch.testing.assert_close(mine, exact, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
def test_l2_normalize_plain_form_agrees_with_the_kernel(dtype):
    x, grad_y = (torch.randn(9, 45, dtype=torch.float64).to(dtype) for _ in range(2))
    x[4] = 0
    x[5] *= 1e-3
    y, inv_norm = plain.forward(x, 1e-12)
    fused_y, fused_inv = torch.ops.clipfast.l2_normalize(x, 1e-12)
    step = torch.finfo(dtype).eps
    torch.testing.assert_close(y, fused_y, rtol=2 * step, atol=step)
    torch.testing.assert_close(inv_norm, fused_inv)
    # Both round a difference of terms as large as grad_y / |x|. Rows are compared in that unit:
    # what is left of the difference may be smaller than what was rounded.
    unit = torch.where(inv_norm > 0, inv_norm, 1)[:, None].double()
    torch.testing.assert_close(
        plain.backward(grad_y, x, inv_norm) / unit,
        torch.ops.clipfast.l2_normalize_backward(grad_y, x, fused_inv) / unit,
        rtol=2 * step,
        atol=4 * step,
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_l2_normalize_same_bits_for_any_number_of_threads(dtype):
    x, grad_y = torch.randn(300, 507).to(dtype), torch.randn(300, 507).to(dtype)
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 3, 1):
            torch.set_num_threads(threads)
            results.append(run(l2_normalize, x, grad_y))
    finally:
        torch.set_num_threads(before)
    for y, grad_x in results[1:]:
        assert torch.equal(y, results[0][0])
        assert torch.equal(grad_x, results[0][1])


def test_l2_normalize_opcheck():
    for x in (torch.randn(5, 12, requires_grad=True), torch.randn(3, 7).bfloat16()):
        torch.library.opcheck(torch.ops.clipfast.l2_normalize, (x, 1e-12, torch.float16))
        torch.library.opcheck(torch.ops.clipfast.l2_normalize, (x, 1e-12))
    x, grad_y = torch.randn(5, 12), torch.randn(5, 12)
    inv_norm = 1 / x.norm(dim=1)
    torch.library.opcheck(torch.ops.clipfast.l2_normalize_backward, (grad_y, x, inv_norm))


@pytest.mark.parametrize("dynamic", [False, True])
def test_l2_normalize_compiles_without_graph_break(dynamic):
    # The backend that traces and differentiates, without inductor's C++ compile.
    op = torch.compile(
        lambda t: l2_normalize(t * 2, out_dtype=torch.float16).float().sin(),
        fullgraph=True,
        dynamic=dynamic,
        backend="aot_eager",
    )
    for rows in (4, 6):
        x, grad_y = torch.randn(rows, 10), torch.randn(rows, 10)
        expected = run(
            lambda t: l2_normalize(t * 2, out_dtype=torch.float16).float().sin(), x, grad_y
        )
        for mine, eager in zip(run(op, x, grad_y), expected, strict=True):
            torch.testing.assert_close(mine, eager)


def test_l2_normalize_second_derivative_is_refused():
    x = torch.randn(3, 4, requires_grad=True)
    (grad,) = torch.autograd.grad(l2_normalize(x).pow(3).sum(), x, create_graph=True)
    with pytest.raises(NotImplementedError, match="second derivative"):
        grad.sum().backward()


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: l2_normalize(torch.ones(2, 3, 4)), ValueError, r"\[B, D\], got \[2, 3, 4\]"),
        (lambda: l2_normalize(torch.ones(2, 3), eps=-1.0), ValueError, "eps"),
        (lambda: l2_normalize(torch.ones(2, 3), eps=float("nan")), ValueError, "eps"),
        (lambda: l2_normalize(torch.ones(2, 3, dtype=torch.int64)), TypeError, "int64"),
        (lambda: l2_normalize(torch.ones(2, 3), out_dtype=torch.int8), TypeError, "int8"),
        (lambda: l2_normalize(torch.ones(2, 3), out_dtype=torch.float64), TypeError, "float64"),
    ],
)
def test_l2_normalize_says_what_was_expected(call, error, words):
    with pytest.raises(error, match=words):
        call()


@pytest.mark.needs("extension")
def test_l2_normalize_backward_operator_checks_shapes():
    op = torch.ops.clipfast.l2_normalize_backward
    with pytest.raises(RuntimeError, match=r"one shape.*\[2, 3\] and \[2, 4\]"):
        op(torch.ones(2, 3), torch.ones(2, 4), torch.ones(2))
    with pytest.raises(RuntimeError, match="inv_norm of shape"):
        op(torch.ones(2, 3), torch.ones(2, 3), torch.ones(3))


CAPABILITY_SCRIPT = """
import torch
from clipfast.ops import l2_normalize
from clipfast.ops.extension import load_extension
torch.manual_seed(0)
for dtype in (torch.float32, torch.float64, torch.float16, torch.bfloat16):
    for dim in (1, 17, 32, 100, 507):
        x = torch.randn(6, dim, dtype=torch.float64).to(dtype).requires_grad_()
        y = l2_normalize(x)
        g = torch.randn(6, dim, dtype=torch.float64).to(dtype)
        y.backward(g)
        t = x.detach().double().requires_grad_()
        z = t / t.norm(dim=1, keepdim=True)
        z.backward(g.double())
        step = torch.finfo(dtype).eps
        assert (y - z).abs().max() <= step, (dtype, dim)
        assert (x.grad - t.grad).abs().max() <= 4 * step * max(1, t.grad.abs().max()), (dtype, dim)
print(load_extension().cpu_capability)
"""


def run_script(script, **environment):
    import os

    return subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
    )


@pytest.mark.needs("extension")
@pytest.mark.parametrize("capability", ["default", "avx2", "avx512"])
def test_l2_normalize_each_cpu_capability(capability):
    order = ["default", "avx2", "avx512"]
    machine = torch.backends.cpu.get_cpu_capability().lower()
    done = run_script(CAPABILITY_SCRIPT, CLIPFAST_CPU_CAPABILITY=capability)
    if machine in order and order.index(capability) <= order.index(machine):
        assert done.stdout.strip() == capability, done.stderr
    else:
        assert done.returncode == 1
        assert "asks for more than this machine has" in done.stderr


@pytest.mark.needs("extension")
def test_l2_normalize_unknown_cpu_capability_is_refused_at_import():
    done = run_script("import clipfast.ops", CLIPFAST_CPU_CAPABILITY="avx1024")
    assert done.returncode != 0
    assert "expected default, avx2 or avx512, got avx1024" in done.stderr


def test_l2_normalize_without_the_extension_warns_once_and_serves():
    script = """
import importlib.util, warnings
real = importlib.util.find_spec
importlib.util.find_spec = lambda name, *a: None if name == "clipfast._C" else real(name, *a)
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    import torch
    from clipfast.ops import l2_normalize
    for _ in range(3):
        x = torch.randn(5, 9, requires_grad=True)
        l2_normalize(x, out_dtype=torch.float16).float().sum().backward()
ours = [str(w.message) for w in caught if "clipfast" in str(w.message)]
assert len(ours) == 1 and "pip install -e ." in ours[0], ours
t = x.detach().double().requires_grad_()
(t / t.norm(dim=1, keepdim=True)).sum().backward()
torch.testing.assert_close(x.grad.double(), t.grad, rtol=1e-5, atol=1e-6)
compiled = torch.compile(l2_normalize, fullgraph=True, backend="aot_eager")
torch.testing.assert_close(compiled(x), l2_normalize(x))
print("served")
"""
    done = run_script(script)
    assert done.stdout.strip() == "served", done.stderr


@pytest.mark.gpu
@pytest.mark.parametrize(("x_dtype", "y_dtype"), PAIRS)
@pytest.mark.parametrize("shape", [*SHAPES, (70001, 512), (5, 8192), (3, 20000)], ids=str)
def test_l2_normalize_cuda_agrees_with_fp64(shape, x_dtype, y_dtype):
    x = torch.randn(shape, dtype=torch.float64).to(x_dtype).cuda()
    grad_y = torch.randn(shape, dtype=torch.float64).to(y_dtype).cuda()
    result = run(lambda t: l2_normalize(t, out_dtype=y_dtype), x, grad_y)
    again = run(lambda t: l2_normalize(t, out_dtype=y_dtype), x, grad_y)
    expected = truth(x, grad_y)
    steps = (torch.finfo(y_dtype).eps, torch.finfo(x_dtype).eps)
    for mine, same, exact, step in zip(result, again, expected, steps, strict=True):
        assert torch.equal(mine, same)
        assert (mine - exact).abs().max() <= step * max(1.0, exact.abs().max().item())


@pytest.mark.gpu
def test_l2_normalize_cuda_edges():
    x = torch.randn(6, 512, device="cuda")
    x[1], x[2], x[3] = 0, x[2] * 1e30, x[3] * 1e-30
    y, grad_x = run(lambda t: l2_normalize(t, eps=0.0), x, torch.randn_like(x))
    assert (y[1] == 0).all()
    assert (grad_x[1] == 0).all()
    torch.testing.assert_close(y[[0, 2, 3, 4, 5]].norm(dim=1), torch.ones(5, device="cuda"))
    # A view that no 16-byte load can read, and one that such loads can.
    wide = torch.randn(6, 4, 513, device="cuda")
    for view in (wide[:, 0, 1:], wide[:, 1, :512]):
        torch.testing.assert_close(l2_normalize(view), F.normalize(view.contiguous()))
