"""clipfast.ops.batch_norm on the CPU: against fp64, against eager torch, threads, capabilities."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import NamedTuple

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from clipfast.ops.batch_norm import Tail, batch_norm, fused_here, plain, plain_tail, reference
from clipfast.ops.dtypes import accumulate_dtype

EPS = 1e-5
DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
# B, C, H, W: one channel, odd ones, whole vectors, long rows, tiles with a rest.
SHAPES = [
    *((3, 1, 2, 2), (3, 7, 4, 2), (2, 33, 4, 6), (1, 64, 10, 12), (4, 123, 2, 2)),
    *((5, 80, 8, 6), (2, 507, 4, 4), (3, 64, 12, 14), (2, 300, 8, 8)),
]
ODD_SHAPES = [(2, 5, 3, 1), (1, 40, 7, 7), (9, 252, 3, 5), (2, 2048, 7, 7)]
POOL, TWICE, POOLED_TOO = Tail(True, pool=True), Tail(True, False, 1), Tail(True, False, 2)
# Residual or none, and what follows.
TAILS = [
    *((False, Tail()), (False, Tail(relu=True)), (True, Tail()), (True, Tail(relu=True))),
    *((False, POOL), (False, Tail(pool=True)), (False, TWICE), (True, TWICE)),
    *((True, POOLED_TOO), (False, POOLED_TOO), (True, Tail(False, False, 2))),
]
needs_extension = pytest.mark.needs("extension")


class Case(NamedTuple):
    x: Tensor
    weight: Tensor
    bias: Tensor
    residual: Tensor | None
    grads: tuple[Tensor, ...]
    tail: Tail

    def to(self, dtype: torch.dtype) -> Case:
        """All in one type."""
        cast = [None if t is None else t.to(dtype) for t in self[:4]]
        return Case(*cast, tuple(g.to(dtype) for g in self.grads), self.tail)


def rows(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape).to(dtype).contiguous(memory_format=torch.channels_last)


def make(shape, dtype=torch.float64, has_residual=False, tail: Tail = Tail()) -> Case:  # noqa: B008
    batch, channels, height, width = shape
    wide = accumulate_dtype(dtype)
    half = (batch, channels, height // 2, width // 2)
    shapes = [half if tail.pool else shape]
    if tail.shortcut_stride:
        shapes.append(half if tail.shortcut_stride == 2 else shape)
    return Case(
        rows(*shape, dtype=dtype) * 2 + 1,
        (torch.rand(channels) + 0.5).to(wide) * torch.randn(channels).sign().to(wide),
        torch.randn(channels).to(wide),
        rows(*shape, dtype=dtype) if has_residual else None,
        tuple(rows(*s, dtype=dtype) for s in shapes),
        tail,
    )


def fused(x, weight, bias, residual, tail):
    mean, inv_std, _ = torch.ops.clipfast.batch_norm_statistics(x.detach(), EPS)
    return batch_norm(x, mean, inv_std, weight, bias, residual, tail)


def eager(x, weight, bias, residual, tail):
    z = F.batch_norm(x, None, None, weight, bias, training=True, eps=EPS)
    return plain_tail(z if residual is None else z + residual, tail, x.dtype)


def truth(x, weight, bias, residual, tail):
    return reference(x, weight, bias, EPS, residual, tail)


def run(function, case: Case, wanted: str = "xwbr") -> list[Tensor | None]:
    """Outputs, then the gradients of x, weight, bias and residual."""
    leaves = [
        None if t is None else t.detach().requires_grad_(name in wanted)
        for name, t in zip("xwbr", case[:4], strict=True)
    ]
    out = function(*leaves, case.tail)
    out = out if isinstance(out, tuple) else (out,)
    torch.autograd.backward(out, case.grads)
    return [*(o.detach() for o in out), *(None if t is None else t.grad for t in leaves)]


def assert_at_most(ours, theirs, exact, dtype: torch.dtype) -> None:
    """Our error is at most theirs, plus a few roundings of the largest value."""
    # The truth of fp64 is itself rounded in fp64.
    step = torch.finfo(dtype).eps * (64 if dtype == torch.float64 else 4)
    for mine, other, right in zip(ours, theirs, exact, strict=True):
        assert (mine is None) == (right is None)
        if right is None:
            continue
        scale = max(1.0, right.abs().max().item())
        error = (mine.double() - right).abs().max().item()
        assert error <= (other.double() - right).abs().max().item() + step * scale


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("has_residual", "tail"), TAILS)
def test_batch_norm_error_is_at_most_eager(has_residual, tail, dtype):
    for shape in SHAPES if tail.pools else SHAPES + ODD_SHAPES:
        case = make(shape, dtype, has_residual, tail)
        ours, theirs = run(fused, case), run(eager, case)
        exact = run(truth, case.to(torch.float64))
        assert_at_most(ours, theirs, exact, dtype)
        for output in ours[: len(case.grads)]:
            assert output.dtype == dtype
            assert output.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(("has_residual", "tail"), TAILS)
def test_batch_norm_fp64_equals_the_equation(has_residual, tail):
    case = make((3, 37, 6, 4), torch.float64, has_residual, tail)
    for mine, right in zip(run(fused, case), run(truth, case), strict=True):
        torch.testing.assert_close(mine, right, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("has_residual", [False, True])
def test_batch_norm_half_precision_rounds_once(has_residual):
    case = make((4, 40, 6, 6), torch.bfloat16, has_residual, Tail(relu=True))
    y = run(fused, case)[0].double()
    right = run(truth, case.to(torch.float64))[0]
    assert ((y - right).abs() <= right.abs() * 2.0**-8 * 1.001 + 1e-6).all()


@pytest.mark.parametrize("offset", [0.0, 100.0, -3000.0])
@pytest.mark.parametrize("channels", [3, 64, 300])
def test_batch_norm_statistics_keep_the_variance_of_far_values(offset, channels):
    x = rows(4, channels, 12, 11, dtype=torch.float32) + offset
    mean, inv_std, var = torch.ops.clipfast.batch_norm_statistics(x, EPS)
    exact_var, exact_mean = torch.var_mean(x.double(), (0, 2, 3), correction=0)
    # One rounding of the mean; E[x^2] - E[x]^2 would lose 1e7 * 6e-8 = 0.6 of a variance of 1.
    torch.testing.assert_close(mean.double(), exact_mean, rtol=1.2e-7, atol=2e-7)
    torch.testing.assert_close(var.double(), exact_var, rtol=2e-6, atol=0)
    torch.testing.assert_close(inv_std.double(), (exact_var + EPS).rsqrt(), rtol=2e-6, atol=0)


def test_batch_norm_statistics_of_equal_values_are_exact():
    x = torch.full((3, 5, 9, 4), 0.1).contiguous(memory_format=torch.channels_last)
    mean, _, var = torch.ops.clipfast.batch_norm_statistics(x, EPS)
    assert torch.equal(mean, torch.full((5,), 0.1))
    assert (var == 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_batch_norm_results_larger_than_the_cache(dtype):
    # Over 16 MB, which is written past the cache; 48 channels leave a rest in each row.
    for channels in (64, 48):
        case = make((4 // dtype.itemsize, channels, 300, 300), dtype, True, TWICE)
        ours, theirs = run(fused, case), run(eager, case)
        exact = run(truth, case.to(torch.float64))
        assert_at_most(ours, theirs, exact, dtype)


@pytest.mark.parametrize("wanted", ["x", "w", "b", "r", "xw", "br", "xr", "wb"])
def test_batch_norm_requires_grad_subsets(wanted):
    case = make((3, 20, 4, 4), torch.float64, True, TWICE)
    everything = run(fused, case)
    for mine, full, name in zip(run(fused, case, wanted)[2:], everything[2:], "xwbr", strict=True):
        assert (mine is not None) == (name in wanted)
        if mine is not None:
            assert torch.equal(mine, full)


@pytest.mark.parametrize("tail", [TWICE, POOLED_TOO])
@pytest.mark.parametrize("used", [0, 1])
def test_batch_norm_with_one_way_unused(tail, used):
    case = make((3, 20, 4, 4), torch.float64, True, tail)
    grads = []
    for function in (fused, truth):
        x = case.x.detach().requires_grad_()
        out = function(x, case.weight, case.bias, case.residual, tail)[used]
        out.backward(case.grads[used])
        grads.append(x.grad)
    torch.testing.assert_close(*grads, rtol=1e-12, atol=1e-12)


def test_batch_norm_two_ways_share_their_memory():
    case = make((3, 20, 4, 4), torch.float32, True, TWICE)
    y, shortcut = fused(*case[:4], TWICE)
    assert y.data_ptr() == shortcut.data_ptr()


def test_batch_norm_other_memory_formats_give_the_same_bits():
    case = make((3, 20, 4, 6), torch.float32, True, TWICE)
    dense = [case.x.contiguous(), *case[1:3], case.residual.contiguous()]
    other = Case(*dense, tuple(g.contiguous() for g in case.grads), case.tail)
    for mine, same in zip(run(fused, other), run(fused, case), strict=True):
        assert torch.equal(mine, same)
    x = case.x.detach().requires_grad_()
    fused(x, *case[1:4], Tail(relu=True)).sum().backward()  # an expanded gradient
    again = case.x.detach().double().requires_grad_()
    truth(again, *case.to(torch.float64)[1:4], Tail(relu=True)).sum().backward()
    torch.testing.assert_close(x.grad.double(), again.grad, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tail", [TWICE, POOLED_TOO])
def test_batch_norm_same_bits_for_any_number_of_threads(dtype, tail):
    case = make((5, 100, 34, 26), dtype, True, tail)
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 3, 1):
            torch.set_num_threads(threads)
            results.append(run(fused, case))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        for mine, same in zip(other, results[0], strict=True):
            assert torch.equal(mine, same)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_batch_norm_non_finite_values_show_in_their_channel(bad):
    case = make((3, 40, 4, 4), torch.float32, False, Tail(relu=True))
    case.x[1, 35, 2, 1] = bad
    y, grad_x, grad_weight, *_ = run(fused, case)
    good = torch.arange(40) != 35
    assert y[:, 35].isnan().all()
    assert grad_x[:, 35].isnan().all()
    assert grad_weight[35].isnan()
    assert y[:, good].isfinite().all()
    assert grad_x[:, good].isfinite().all()


def test_batch_norm_gradcheck_fp64():
    case = make((2, 3, 4, 2), torch.float64, True, POOLED_TOO)
    leaves = [t.detach().requires_grad_() for t in case[:4]]
    assert torch.autograd.gradcheck(lambda *t: fused(*t, POOLED_TOO), leaves)


def test_batch_norm_second_derivative_is_refused():
    case = make((2, 3, 4, 2), torch.float32)
    x = case.x.requires_grad_()
    (grad,) = torch.autograd.grad(fused(x, *case[1:4], Tail()).pow(3).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="batch_norm has no second derivative"):
        grad.sum().backward()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("has_residual", "tail"), TAILS)
def test_batch_norm_plain_forms_agree_with_the_kernels(has_residual, tail, dtype):
    case = make((3, 21, 4, 6), dtype, has_residual, tail)
    op = torch.ops.clipfast
    step = torch.finfo(dtype).eps
    close = {"rtol": 4 * step, "atol": 8 * step}
    statistics = op.batch_norm_statistics(case.x, EPS)
    for mine, other in zip(statistics, plain.statistics(case.x, EPS), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-6)
    mean, inv_std, _ = statistics
    apply_args = (case.x, mean, inv_std, case.weight, case.bias, case.residual, tail.relu)
    outputs = op.batch_norm_apply(*apply_args, not tail.pool, tail.pools)
    theirs = plain.apply(*apply_args, not tail.pool, tail.pools)
    for mine, other in zip(outputs, theirs, strict=True):
        torch.testing.assert_close(mine, other, **close)
        assert mine.stride() == other.stride()
    y = outputs[0] if has_residual else None
    second = case.grads[1] if len(case.grads) > 1 else None
    args = (case.grads[0], second, case.x, y, mean, inv_std, case.weight, case.bias, tail.relu)
    outputs = op.batch_norm_backward(*args, has_residual)
    for mine, other in zip(outputs, plain.backward(*args, has_residual), strict=True):
        torch.testing.assert_close(mine, other, rtol=16 * step, atol=64 * step)
        assert mine.stride() == other.stride()


def test_batch_norm_opcheck():
    for dtype, has_residual, tail in ((torch.float32, True, TWICE), (torch.bfloat16, False, POOL)):
        case = make((2, 6, 4, 4), dtype, has_residual, tail)
        op, check = torch.ops.clipfast, torch.library.opcheck
        mean, inv_std, _ = op.batch_norm_statistics(case.x, EPS)
        check(op.batch_norm_statistics, (case.x, EPS))
        args = (case.x, mean, inv_std, case.weight, case.bias, case.residual, True)
        check(op.batch_norm_apply, (*args, not tail.pool, tail.pools))
        y = case.x if has_residual else None
        grads = (*case.grads, None)[:2]
        args = (case.x, y, mean, inv_std, case.weight, case.bias, True, has_residual)
        check(op.batch_norm_backward, (*grads, *args))


@needs_extension
def test_batch_norm_fused_here_asks_for_channels_last_on_the_cpu():
    x = rows(2, 3, 4, 4, dtype=torch.float32)
    assert fused_here(x)
    assert not fused_here(x.contiguous())
    assert not fused_here(x.to("meta"))
    assert not fused_here(x.to(torch.int32))
    assert not fused_here(x[:0])


def test_batch_norm_pool_with_a_residual_is_refused():
    case = make((2, 3, 4, 4), torch.float32, True)
    with pytest.raises(ValueError, match="without residual"):
        fused(*case[:4], POOL)


@needs_extension
def test_batch_norm_operators_say_what_was_expected():
    op = torch.ops.clipfast
    x, v = rows(2, 3, 4, 4, dtype=torch.float32), torch.ones(3)
    with pytest.raises(RuntimeError, match=r"\[B, C, H, W\].*got \[2, 3\]"):
        op.batch_norm_statistics(torch.ones(2, 3), EPS)
    with pytest.raises(RuntimeError, match=r"weight of shape \[3\]"):
        op.batch_norm_apply(x, v, v, torch.ones(4), v, None, True, True, False)
    with pytest.raises(RuntimeError, match="residual of shape"):
        op.batch_norm_apply(x, v, v, v, v, x[:1], True, True, False)
    with pytest.raises(RuntimeError, match="even height and width"):
        op.batch_norm_apply(x[..., :3], v, v, v, v, None, True, True, True)
    with pytest.raises(RuntimeError, match="half its height and width"):
        op.batch_norm_backward(x[:1], None, x, None, v, v, v, v, True, False)
    with pytest.raises(RuntimeError, match="expected a gradient"):
        op.batch_norm_backward(None, None, x, None, v, v, v, v, True, False)


CAPABILITY_SCRIPT = """
import torch
from clipfast.ops.extension import load_extension
from tests.ops import test_batch_norm as t
torch.manual_seed(0)
for dtype in t.DTYPES:
    for has_residual, tail in t.TAILS:
        wide = (1, 64, 130, 256 if dtype.itemsize > 2 else 2)
        # The widest shape takes nearly all of the time.
        shapes = [(3, 7, 4, 2), (2, 100, 8, 6)] + [wide] * (tail == t.TAILS[-1][1])
        for shape in shapes:
            case = t.make(shape, dtype, has_residual, tail)
            exact = t.run(t.truth, case.to(torch.float64))
            ours, theirs = t.run(t.fused, case), t.run(t.eager, case)
            t.assert_at_most(ours, theirs, exact, dtype)
print(load_extension().cpu_capability)
"""


@needs_extension
@pytest.mark.parametrize("capability", ["default", "avx2", "avx512"])
def test_batch_norm_each_cpu_capability(capability):
    order = ["default", "avx2", "avx512"]
    machine = torch.backends.cpu.get_cpu_capability().lower()
    if machine not in order or order.index(capability) > order.index(machine):
        pytest.skip(f"this machine has {machine}")
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", CAPABILITY_SCRIPT],
        capture_output=True,
        text=True,
        env={**os.environ, "CLIPFAST_CPU_CAPABILITY": capability},
    )
    assert done.stdout.strip() == capability, done.stderr
