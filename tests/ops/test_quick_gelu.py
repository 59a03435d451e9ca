"""clipfast.ops.quick_gelu: against fp64 and the eager form, and its Triton kernels interpreted and
compiled ahead of time."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from clipfast.models.layers import QuickGELU
from clipfast.ops.quick_gelu import plain, quick_gelu, reference
from tests.needs import need
from tests.ops.triton_tools import assemble

ROOT = Path(__file__).resolve().parents[2]
DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
SHAPES = [(1,), (7,), (3, 5, 11), (123, 252), (507,), (64, 512), (2, 8193), (5, 0)]
needs_extension = pytest.mark.needs("extension")


def run(function, x: Tensor, grad_y: Tensor) -> tuple[Tensor, Tensor]:
    leaf = x.detach().requires_grad_()
    y = function(leaf)
    y.backward(grad_y)
    return y.detach(), leaf.grad


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_quick_gelu_error_is_at_most_eager(shape, dtype):
    x, grad_y = ((torch.randn(shape, dtype=torch.float64) * 4).to(dtype) for _ in range(2))
    exact = run(reference, x.double(), grad_y.double())
    ours, eager = run(quick_gelu, x, grad_y), run(reference, x, grad_y)
    step = torch.finfo(dtype).eps
    for mine, theirs, right in zip(ours, eager, exact, strict=True):
        assert mine.dtype == dtype
        assert mine.shape == x.shape
        if x.numel():
            bound = (theirs.double() - right).abs().max() + step * right.abs().max()
            assert (mine.double() - right).abs().max() <= bound


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_quick_gelu_half_precision_rounds_once(dtype):
    x, grad_y = ((torch.randn(4001) * 3).to(dtype) for _ in range(2))
    exact = run(reference, x.double(), grad_y.double())
    for mine, right in zip(run(quick_gelu, x, grad_y), exact, strict=True):
        half_step = right.abs() * torch.finfo(dtype).eps / 2
        # fp16's smallest steps are absolute.
        assert ((mine.double() - right).abs() <= half_step * 1.001 + 2.0**-25 + 1e-6).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_quick_gelu_far_values_are_finite(dtype):
    x = torch.tensor([-6e4, -1000.0, -60.0, -0.0, 0.0, 60.0, 1000.0, 6e4]).to(dtype)
    y, grad_x = run(quick_gelu, x, torch.ones_like(x))
    right = torch.where(x > 0, x, torch.zeros_like(x))
    torch.testing.assert_close(y, right, rtol=0, atol=1e-30)
    expected = torch.tensor([0, 0, 0, 0.5, 0.5, 1, 1, 1]).to(dtype)
    torch.testing.assert_close(grad_x, expected, rtol=0, atol=1e-30)


def test_quick_gelu_non_finite_values_show():
    x = torch.tensor([1.0, float("nan"), float("inf"), 2.0] * 20)
    y = quick_gelu(x)
    assert y[1::4].isnan().all()
    assert (y[2::4] == float("inf")).all()
    assert y[0::4].isfinite().all()


def test_quick_gelu_non_contiguous_inputs_and_gradients():
    x, grad_y = torch.randn(12, 31).t(), torch.randn(31, 12, 2)[..., 0]
    expected = run(quick_gelu, x.contiguous(), grad_y.contiguous())
    for mine, right in zip(run(quick_gelu, x, grad_y), expected, strict=True):
        assert torch.equal(mine, right)
    leaf = x.detach().requires_grad_()
    quick_gelu(leaf).sum().backward()
    again = x.double().requires_grad_()
    reference(again).sum().backward()
    torch.testing.assert_close(leaf.grad.double(), again.grad, rtol=1e-6, atol=1e-6)


def test_quick_gelu_keeps_x_alone():
    x, saved = torch.randn(5, 9, requires_grad=True), []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        quick_gelu(x)
    assert [t.data_ptr() for t in saved] == [x.data_ptr()]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_quick_gelu_same_bits_for_any_number_of_threads(dtype):
    x, grad_y = (torch.randn(100003).to(dtype) for _ in range(2))
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(run(quick_gelu, x, grad_y))
    finally:
        torch.set_num_threads(before)
    for y, grad_x in results[1:]:
        assert torch.equal(y, results[0][0])
        assert torch.equal(grad_x, results[0][1])


def test_quick_gelu_gradcheck_fp64():
    x = torch.randn(4, 11, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(quick_gelu, (x,))


def test_quick_gelu_opcheck():
    for x in (torch.randn(5, 12, requires_grad=True), torch.randn(3, 7).bfloat16().t()):
        torch.library.opcheck(torch.ops.clipfast.quick_gelu, (x,))
    x, grad_y = torch.randn(5, 12), torch.randn(5, 12)
    torch.library.opcheck(torch.ops.clipfast.quick_gelu_backward, (grad_y, x))


@pytest.mark.parametrize("dtype", DTYPES)
def test_quick_gelu_plain_form_agrees_with_the_kernel(dtype):
    x, grad_y = (torch.randn(9, 45, dtype=torch.float64).to(dtype) for _ in range(2))
    y, grad_x = run(quick_gelu, x, grad_y)
    close = {"rtol": torch.finfo(dtype).eps * 8, "atol": torch.finfo(dtype).eps}
    torch.testing.assert_close(y, plain.forward(x), **close)
    torch.testing.assert_close(grad_x, plain.backward(grad_y, x), **close)


def test_quick_gelu_compiles_to_plain_torch_with_the_same_gradients():
    module = QuickGELU()
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    x, grad_y = torch.randn(6, 20), torch.randn(6, 20)
    for mine, eager in zip(run(compiled, x, grad_y), run(module, x, grad_y), strict=True):
        torch.testing.assert_close(mine, eager)


def test_quick_gelu_refuses_a_second_derivative_and_other_types():
    x = torch.randn(3, requires_grad=True)
    (grad,) = torch.autograd.grad(quick_gelu(x).sum(), x, create_graph=True)
    with pytest.raises(NotImplementedError, match="second derivative"):
        grad.sum().backward()
    with pytest.raises(TypeError, match="int64"):
        quick_gelu(torch.ones(3, dtype=torch.int64))


@needs_extension
def test_quick_gelu_backward_operator_checks_shapes():
    with pytest.raises(RuntimeError, match=r"\[2, 3\].*\[2, 4\]"):
        torch.ops.clipfast.quick_gelu_backward(torch.ones(2, 3), torch.ones(2, 4))


def run_script(script: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, **environment},
    )


AGREES = """
import torch
from clipfast.ops.quick_gelu import reference
from SOURCE import FORWARD as forward, BACKWARD as backward
torch.manual_seed(0)
for dtype in (torch.float32, torch.float64, torch.float16, torch.bfloat16):
    # NumPy, and so Triton's interpreter, has no bf16.
    if dtype == torch.bfloat16 and "kernels" in "SOURCE":
        continue
    for shape in ((1,), (17,), (100, 31), (4, 4096), (3, 0)):
        x, g = (torch.randn(shape, dtype=torch.float64).mul(8).to(dtype) for _ in range(2))
        t = x.double().requires_grad_()
        z = reference(t)
        z.backward(g.double())
        step = torch.finfo(dtype).eps
        close = dict(rtol=4 * step, atol=4 * step, check_dtype=False)
        torch.testing.assert_close(forward(x), z.detach(), **close)
        torch.testing.assert_close(backward(g, x), t.grad, rtol=8 * step, atol=32 * step,
                                   check_dtype=False)
        assert forward(x).dtype == backward(g, x).dtype == dtype
print("agreed")
"""


def test_triton_quick_gelu_interpreted_agrees_with_fp64():
    need("triton")
    script = AGREES.replace("SOURCE", "clipfast.kernels.quick_gelu.launch")
    script = script.replace("FORWARD", "launch_quick_gelu")
    script = script.replace("BACKWARD", "launch_quick_gelu_backward")
    done = run_script(script, TRITON_INTERPRET="1")
    assert done.stdout.strip() == "agreed", done.stderr


@needs_extension
@pytest.mark.parametrize("capability", ["default", "avx2", "avx512"])
def test_quick_gelu_each_cpu_capability(capability):
    order = ["default", "avx2", "avx512"]
    machine = torch.backends.cpu.get_cpu_capability().lower()
    if machine not in order or order.index(capability) > order.index(machine):
        pytest.skip(f"this machine has {machine}")
    # The operators, under the names that the script asks for.
    script = AGREES.replace("from SOURCE import FORWARD as forward, BACKWARD as backward", "")
    script = script.replace("SOURCE", "csrc").replace(
        "torch.manual_seed(0)",
        "forward = torch.ops.clipfast.quick_gelu\n"
        "backward = torch.ops.clipfast.quick_gelu_backward\n"
        "torch.manual_seed(0)",
    )
    done = run_script(script, CLIPFAST_CPU_CAPABILITY=capability)
    assert done.stdout.strip() == "agreed", done.stderr


@pytest.mark.parametrize("arch", [80, 90])
@pytest.mark.parametrize(("dtype", "acc"), [("bf16", "fp32"), ("fp32", "fp32"), ("fp64", "fp64")])
def test_triton_quick_gelu_compiles_without_spills(arch, dtype, acc):
    need("triton")
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from clipfast.kernels.quick_gelu import elements, launch

    pointers = [f"{name}_ptr" for name in ("grad_y", "x", "grad_x")]
    for kernel, names in (
        (elements.quick_gelu_kernel, ["x_ptr", "y_ptr"]),
        (elements.quick_gelu_backward_kernel, pointers),
    ):
        signature = dict.fromkeys(names, f"*{dtype}") | {"n": "i64"}
        signature |= dict.fromkeys(("ACC", "BLOCK"), "constexpr")
        constants = {"ACC": getattr(triton.language, f"float{acc[2:]}"), "BLOCK": launch.BLOCK}
        made = triton.compile(
            ASTSource(fn=kernel, signature=signature, constexprs=constants),
            target=GPUTarget("cuda", arch, 32),
            options={"num_warps": launch.NUM_WARPS},
        )
        assert assemble(made, arch).spilled_bytes == 0


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES)
def test_quick_gelu_cuda_agrees_with_fp64(dtype):
    for shape in [*SHAPES, (3000, 4096)]:
        x, grad_y = ((torch.randn(shape, device="cuda") * 4).to(dtype) for _ in range(2))
        exact = run(reference, x.double(), grad_y.double())
        step = torch.finfo(dtype).eps
        for mine, right in zip(run(quick_gelu, x, grad_y), exact, strict=True):
            # A GPU's exponential and quotient are approximations in fp32: 8 units were seen.
            torch.testing.assert_close(mine.double(), right, rtol=12 * step, atol=16 * step)
