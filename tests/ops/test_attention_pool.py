"""Attention pooling in absorbed form against the usual form, in plain torch on the CPU."""

from __future__ import annotations

import itertools

import pytest
import torch

from clipfast.ops import attention_pool as ops
from clipfast.ops.attention_pool import plain as steps
from tests.ops.attention_pool_cases import (
    NAMES,
    errors_against_fp64,
    make_inputs,
    relative_errors,
    value_and_grads,
)

# (B, N, C, H): odd ones, batch 1, one token, one head, heads of one channel, 20 x 20.
SHAPES = [
    (3, 9, 24, 4),
    (1, 49, 64, 2),
    (5, 1, 6, 3),
    (2, 7, 35, 5),
    (2, 12, 16, 1),
    (2, 6, 7, 7),
    (1, 400, 48, 3),
]
# The towers' own, (N, C, H).
HEADS = {
    "RN50": (49, 2048, 32),
    "RN101": (49, 2048, 32),
    "RN50x4": (81, 2560, 40),
    "RN50x16": (144, 3072, 48),
    "RN50x64": (196, 4096, 64),
}


def assert_exact(inputs, num_heads, tolerance=1e-12):
    got = value_and_grads(ops.attention_pool, inputs, num_heads)
    want = value_and_grads(ops.reference, inputs, num_heads)
    assert not got["k_bias"].any()
    for name, error in relative_errors(got, want).items():
        assert error <= tolerance, (name, error)


@pytest.mark.parametrize("shape", SHAPES)
def test_attention_pool_output_and_gradients_equal_usual_form(shape):
    *sizes, num_heads = shape
    assert_exact(make_inputs(*sizes, torch.float64), num_heads)


@pytest.mark.parametrize("name", HEADS)
def test_attention_pool_of_each_resnet_equals_usual_form(name):
    tokens, channels, num_heads = HEADS[name]
    # Half the channels for the wide ones: the usual form takes seconds in fp64.
    share = 1 if channels <= 2560 else 2
    inputs = make_inputs(2, tokens, channels // share, torch.float64)
    assert_exact(inputs, num_heads // share)


def test_attention_pool_in_several_chunks_is_exact(monkeypatch):
    inputs = make_inputs(7, 9, 24, torch.float64)
    monkeypatch.setitem(steps.CHUNK_BYTES, "cpu", 2 * 10 * 24 * 8)
    assert [part.start for part in steps.chunks(inputs["x"])] == [0, 2, 4, 6]
    assert_exact(inputs, 4)


def test_attention_pool_of_tokens_without_adjacent_channels_is_exact():
    inputs = make_inputs(3, 9, 24, torch.float64)
    x = inputs["x"].detach().mT.contiguous().mT.requires_grad_()
    assert not x.is_contiguous()
    assert_exact({**inputs, "x": x}, 4)


def test_attention_pool_with_peaked_attention_is_exact():
    inputs = make_inputs(3, 9, 24, torch.float64, spread=30.0)
    assert_exact(inputs, 4, 1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(4, 49, 256, 4), (3, 25, 63, 7), (2, 144, 192, 3)])
def test_attention_pool_is_as_accurate_as_usual_form(shape, dtype):
    *sizes, num_heads = shape
    own, usual = {}, {}
    for seed in range(3):
        inputs = make_inputs(*sizes, dtype, seed=seed)
        for total, function in ((own, ops.attention_pool), (usual, ops.reference)):
            for name, error in errors_against_fp64(function, inputs, num_heads).items():
                total[name] = total.get(name, 0.0) + error
    for name in own:
        slack = 1.02 * usual[name] + 6 * torch.finfo(torch.float32).eps
        assert own[name] <= slack, (name, own[name], usual[name])


def test_attention_pool_keeps_fp32_vectors_beside_half_precision_weights():
    inputs = make_inputs(3, 9, 24, torch.bfloat16)
    for name in ("positions", "q_bias", "k_bias", "v_bias"):
        inputs[name] = inputs[name].detach().float().requires_grad_()
    result = value_and_grads(ops.attention_pool, inputs, 4)
    assert result["out"].dtype == torch.bfloat16
    for name in NAMES:
        assert result[name].dtype == inputs[name].dtype, name


@pytest.mark.parametrize("wanted", [*itertools.combinations(NAMES, 1), NAMES[1:], NAMES[:2]])
def test_attention_pool_gives_the_gradients_that_are_wanted(wanted):
    inputs = make_inputs(3, 9, 24, torch.float64)
    full = value_and_grads(ops.attention_pool, inputs, 4)
    for name, tensor in inputs.items():
        tensor.requires_grad_(name in wanted)
    out = ops.attention_pool(*inputs.values(), 4)
    grad = torch.randn(out.shape, dtype=out.dtype, generator=torch.Generator().manual_seed(7))
    out.backward(grad)
    for name, tensor in inputs.items():
        if name in wanted:
            torch.testing.assert_close(tensor.grad, full[name], rtol=1e-13, atol=1e-13)
        else:
            assert tensor.grad is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_attention_pool_under_autocast_gives_the_same_bits(dtype):
    inputs = make_inputs(3, 9, 24, dtype)
    want = value_and_grads(ops.attention_pool, inputs, 4)
    with torch.autocast("cpu", torch.bfloat16):
        got = value_and_grads(ops.attention_pool, inputs, 4)
    for name in want:
        assert torch.equal(got[name], want[name]), name


def test_attention_pool_keeps_little_for_the_backward_pass():
    inputs = make_inputs(4, 49, 256, torch.float32)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        ops.attention_pool(*inputs.values(), 4)
    given = {tensor.data_ptr() for tensor in inputs.values()}
    extra = sum(t.nbytes for t in kept if t.data_ptr() not in given)
    assert extra == 4 * 4 * (4 * 50 + 2 * 256)  # A [H, B, N + 1], the mean token and the query
    assert any(t.data_ptr() == inputs["x"].data_ptr() for t in kept)


def test_attention_pool_passes_gradcheck():
    inputs = make_inputs(2, 5, 6, torch.float64)
    assert torch.autograd.gradcheck(
        lambda *tensors: ops.attention_pool(*tensors, 3), tuple(inputs.values())
    )


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("wanted", [(True,) * 7, (False, True) * 3 + (False,), (False,) * 7])
def test_attention_pool_operators_pass_opcheck(dtype, wanted):
    inputs = make_inputs(2, 5, 6, dtype)
    arguments = (*inputs.values(), 3, "plain")
    torch.library.opcheck(torch.ops.clipfast.attention_pool.default, arguments)
    out, *kept = torch.ops.clipfast.attention_pool(*arguments)
    tensors = [inputs[name] for name in ("x", "positions", "q_weight", "k_weight", "v_weight")]
    torch.library.opcheck(
        torch.ops.clipfast.attention_pool_backward.default,
        (*(t.detach() for t in (torch.randn_like(out), *tensors, *kept)), list(wanted), "plain"),
    )


def test_attention_pool_has_no_second_derivative():
    inputs = make_inputs(2, 5, 6, torch.float64)
    out = ops.attention_pool(*inputs.values(), 3)
    (grad,) = torch.autograd.grad(out.sum(), inputs["x"], create_graph=True)
    with pytest.raises(NotImplementedError, match="no second derivative"):
        grad.sum().backward()


def test_attention_pool_of_an_empty_batch():
    inputs = make_inputs(0, 5, 6, torch.float32)
    result = value_and_grads(ops.attention_pool, inputs, 3)
    assert result["out"].shape == (0, 6)
    assert not result["v_weight"].any()
    assert not result["positions"].any()


def test_attention_pool_compiles_whole():
    inputs = make_inputs(3, 9, 24, torch.float32)
    compiled = torch.compile(ops.attention_pool, backend="aot_eager", fullgraph=True)
    got = value_and_grads(compiled, inputs, 4)
    want = value_and_grads(ops.attention_pool, inputs, 4)
    for name in got:
        torch.testing.assert_close(got[name], want[name])


def test_attention_pool_refuses_what_does_not_fit():
    inputs = make_inputs(2, 5, 6, torch.float32)

    def call(num_heads=3, impl="auto", **changed):
        return ops.attention_pool(*{**inputs, **changed}.values(), num_heads, impl)

    with pytest.raises(ValueError, match=r"\[B, N, C\] with N >= 1, got \[2, 6\]"):
        call(x=torch.zeros(2, 6))
    with pytest.raises(ValueError, match="num_heads=4 must divide the 6 channels"):
        call(num_heads=4)
    with pytest.raises(ValueError, match=r"positions \[6, 6\] for 5 tokens.*interpolate"):
        call(positions=torch.zeros(5, 6))
    with pytest.raises(ValueError, match=r"expected k_weight \[6, 6\]"):
        call(k_weight=torch.zeros(6, 5))
    with pytest.raises(TypeError, match=r"v_weight of x's type torch\.float32, got torch\.float64"):
        call(v_weight=torch.zeros(6, 6, dtype=torch.float64))
    with pytest.raises(ValueError, match="impl='cuda' cannot serve"):
        call(impl="cuda")
    assert ops.choose("auto", inputs["x"]) == "plain"
