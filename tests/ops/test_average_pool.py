"""Average pooling without overlap: torch's, value and gradient, in its own two passes."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from clipfast.ops.average_pool import average_pool, average_pool_rows, operator, serves

SHAPES = [(2, 3, 4, 6, 2), (1, 1, 2, 2, 2), (3, 5, 6, 9, 3), (2, 8, 5, 7, 1), (5, 16, 2, 8, 2)]


@pytest.fixture
def on_cpu(monkeypatch):
    """The CPU, where torch's own pooling serves, counts as a device of the own passes."""
    monkeypatch.setattr(operator, "DEVICES", ("cpu",))


def rows(*shape, dtype=torch.float32, device="cpu"):
    x = torch.randn(shape, device=device).to(dtype)
    return x.contiguous(memory_format=torch.channels_last).requires_grad_()


def check(shape, dtype, device="cpu"):
    *sizes, kernel = shape
    x = rows(*sizes, dtype=dtype, device=device)
    y = average_pool_rows(x, kernel)
    truth = F.avg_pool2d(x.detach().double(), kernel)
    grad_y = rows(*truth.shape, dtype=dtype, device=device).detach()
    (grad_x,) = torch.autograd.grad(y, x, grad_y)
    assert y.dtype == grad_x.dtype == dtype
    assert y.shape == truth.shape
    for result in (y, grad_x):
        assert result.is_contiguous(memory_format=torch.channels_last)
    # A window of values near +1 and -1 sums to less than its terms: the bound is theirs.
    # Sums are in float32, and each addition rounds once.
    step = torch.finfo(dtype).eps
    size = F.avg_pool2d(x.detach().double().abs(), kernel)
    sums = (kernel**2 - 1) / 2 * torch.finfo(torch.float32).eps
    assert ((y.double() - truth).abs() <= (step / 2 + sums) * size).all()
    (expected,) = torch.autograd.grad(F.avg_pool2d(x, kernel), x, grad_y)
    if kernel in (1, 2):
        assert torch.equal(grad_x, expected)  # a quarter is exact
    else:
        torch.testing.assert_close(grad_x, expected, rtol=2 * step, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", SHAPES)
def test_average_pool_rows_agrees_with_torch(shape, dtype):
    check(shape, dtype)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [*SHAPES, (32, 64, 56, 56, 2)])
def test_average_pool_on_gpu_agrees_with_torch(shape, dtype):
    assert serves(rows(*shape[:4], dtype=dtype, device="cuda"), shape[4])
    check(shape, dtype, "cuda")


def test_average_pool_rows_first_and_second_derivatives(monkeypatch):
    monkeypatch.setattr(operator, "DTYPES", (torch.float64,))
    x = rows(2, 3, 4, 6, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: average_pool_rows(x, 2), x)
    assert torch.autograd.gradgradcheck(lambda x: average_pool_rows(x, 2).square(), x)


def test_average_pool_rows_takes_a_gradient_of_any_format():
    x = rows(2, 3, 4, 6)
    grad_y = torch.randn(2, 3, 2, 3)
    for given in (grad_y, grad_y.contiguous(memory_format=torch.channels_last)):
        (grad_x,) = torch.autograd.grad(average_pool_rows(x, 2), x, given)
        assert grad_x.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(grad_x, grad_y.repeat_interleave(2, 2).repeat_interleave(2, 3) / 4)
    (grad_x,) = torch.autograd.grad(average_pool_rows(x, 2).sum(), x)  # of stride 0
    assert torch.equal(grad_x, torch.full_like(x, 0.25))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_average_pool_rows_under_autocast_keeps_its_type(dtype):
    x = rows(2, 3, 4, 6, dtype=dtype)
    with torch.autocast("cpu", dtype=dtype):
        assert average_pool_rows(x, 2).dtype == dtype


def test_average_pool_on_a_cpu_is_torchs():
    assert not serves(rows(2, 3, 4, 6), 2)


@pytest.mark.usefixtures("on_cpu")
def test_average_pool_leaves_to_torch_what_the_windows_do_not_fill():
    assert serves(rows(2, 3, 4, 6), 2)
    others = {
        "odd height": rows(2, 3, 5, 6),
        "odd width": rows(2, 3, 4, 7),
        "fp64": rows(2, 3, 4, 6, dtype=torch.float64),
        "contiguous": torch.randn(2, 3, 4, 6),
        "no batch": torch.randn(3, 4, 6),
        "empty": rows(0, 3, 4, 6),
    }
    for name, x in others.items():
        assert not serves(x, 2), name
        assert torch.equal(average_pool(x, 2), F.avg_pool2d(x, 2)), name


@pytest.mark.usefixtures("on_cpu")
def test_average_pool_compiled_is_torchs_in_one_graph():
    targets = []

    def look(module, inputs):
        targets.extend(str(node.target) for node in module.graph.nodes)
        return module.forward

    x = rows(2, 3, 4, 6)
    torch._dynamo.reset()
    compiled = torch.compile(lambda x: average_pool(x, 2), backend=look, fullgraph=True)
    assert torch.equal(compiled(x), F.avg_pool2d(x, 2))
    assert any("avg_pool2d" in target for target in targets), targets
    torch._dynamo.reset()
