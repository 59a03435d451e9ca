"""Checks of attention pooling in Triton against fp64, for tests/ops/test_attention_pool_triton.py.

Each `case_*` takes a device. As a program, under TRITON_INTERPRET=1, this file runs them all on the
CPU; on a GPU they run at larger sizes as well.
"""

from __future__ import annotations

import pytest
import torch

from clipfast.ops import attention_pool as ops
from clipfast.ops.attention_pool import plain
from tests.ops.attention_pool_cases import errors_against_fp64, make_inputs, value_and_grads
from tests.ops.triton_tools import run_cases

# (B, N, C, H): one token, odd ones, one head, the RN50's and the RN50x64's count of tokens.
SHAPES = [(1, 1, 6, 3), (3, 7, 35, 5), (2, 49, 96, 3), (2, 12, 70, 1), (1, 196, 128, 2)]
LARGE = [(32, 49, 2048, 32), (5, 81, 2560, 40), (3, 144, 3072, 48), (9, 196, 4096, 64)]
# Largest relative error of an operand. The interpreter cuts bf16 off where a GPU rounds to nearest.
ROUNDING = {
    "cuda": {torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8, torch.float32: 2.0**-22},
    "cpu": {torch.float16: 2.0**-11, torch.bfloat16: 2.0**-7, torch.float32: 2.0**-22},
}


def kernels():
    from clipfast.kernels.attention_pool import launch

    return launch


def shapes_for(device):
    return SHAPES + LARGE * (device == "cuda")


def assert_near(got, truth, terms, rate, name):
    """Each element's error against the sum of the absolute terms that it is made of."""
    assert got.shape == truth.shape, (name, got.shape, truth.shape)
    error = (got.double() - truth).abs()
    assert (error <= rate * terms + 1e-7).all(), (name, float((error / (terms + 1e-30)).max()))


def check_steps(batch, tokens, channels, heads, dtype, device, positions_dtype=None):
    """Every step on random operands, those of the later ones independent of the earlier."""
    rate = 4 * ROUNDING[device][dtype]
    x = torch.randn(batch, tokens, channels).relu().to(device, dtype)
    positions = (0.3 * torch.randn(tokens + 1, channels)).to(device, positions_dtype or dtype)
    absorbed, grad_context = (
        (torch.randn(heads, batch, channels) * channels**-0.5).to(device, dtype) for _ in range(2)
    )
    grad_token = torch.randn(batch, channels).to(device, dtype)
    scale = (channels // heads) ** -0.5 * 4
    x64, positions64 = x.double(), positions.double()

    token = kernels().launch_mean_token(x, positions)
    assert token.dtype == torch.float32
    true_token = plain.mean_token(x64, positions64)
    assert_near(token, true_token, 1.0 + true_token.abs(), 1e-6, "token")

    attention, context = kernels().launch_attend(x, positions, token, absorbed, scale)
    true_attention, _ = plain.attend(x64, positions64, token.double(), absorbed.double(), scale)
    t = plain.positioned_tokens(x64, positions64, token.double())
    vectors = absorbed.double().transpose(0, 1)
    size = torch.bmm(vectors.abs(), t.mT.abs()).transpose(0, 1).amax(2, keepdim=True) * scale
    assert attention.dtype == torch.float32
    assert_near(attention, true_attention, true_attention * (1 + 2 * size), rate, "attention")
    true_context = torch.einsum("hbn,bnc->hbc", attention.double(), t)
    context_size = torch.einsum("hbn,bnc->hbc", attention.double(), t.abs())
    assert context.dtype == dtype
    # Two terms of the type hold the sum better than one: operands alone are rounded.
    summed = context.double().sum(1)
    assert_near(summed, true_context, context_size, rate, "context")

    grads = kernels().launch_attend_backward(x, positions, token, attention, grad_context, scale)
    grad_scores, context_again, grad_absorbed = grads
    weights = attention.double()
    grad = torch.einsum("hbc,bnc->hbn", grad_context.double(), t)
    inner = (weights * grad).sum(2, keepdim=True)
    bound = torch.einsum("hbc,bnc->hbn", grad_context.double().abs(), t.abs())
    bound = scale * weights * (bound + (weights * bound).sum(2, keepdim=True))
    assert_near(grad_scores, scale * weights * (grad - inner), bound, rate, "grad_scores")
    assert torch.equal(context, context_again)
    true_absorbed = torch.einsum("hbn,bnc->hbc", grad_scores.double(), t)
    absorbed_size = torch.einsum("hbn,bnc->hbc", grad_scores.double().abs(), t.abs())
    assert grad_absorbed.dtype == dtype
    least = 2.0**-24 * t.abs().sum(1)[None] * (dtype == torch.float16)  # fp16's smallest dS
    assert_near(grad_absorbed, true_absorbed, absorbed_size + least / rate, rate, "grad_absorbed")

    operands = (attention, grad_scores, grad_context, absorbed, grad_token)
    dx, dp = kernels().launch_grad_tokens(*operands, True)
    wide = [tensor.double() for tensor in operands]
    true_dx, true_dp = plain.grad_tokens(*wide, True)
    dx_size, dp_size = plain.grad_tokens(*[tensor.abs() for tensor in wide], True)
    assert dx.dtype == dtype
    assert dp.dtype == torch.float32
    assert_near(dx, true_dx, dx_size, rate, "dx")
    dp_size[1:] += 2 * dp_size[0] / tokens
    assert_near(dp, true_dp, dp_size, rate, "dp")
    again, nothing = kernels().launch_grad_tokens(*operands, False)
    assert torch.equal(again, dx)
    assert nothing.shape == (0, channels)


def case_fp32(device):
    for shape in shapes_for(device):
        check_steps(*shape, torch.float32, device)


def case_fp16(device):
    for shape in shapes_for(device):
        check_steps(*shape, torch.float16, device)


def case_bf16(device):
    for shape in shapes_for(device):
        check_steps(*shape, torch.bfloat16, device)


def case_fp32_positions_beside_half_tokens(device):
    check_steps(2, 12, 70, 5, torch.float16, device, torch.float32)


def case_many_tokens(device):
    check_steps(1, 256, 64, 2, torch.float16, device)


def case_head_blocks(device):
    check_steps(2, 9, 160, 20, torch.float16, device)
    check_steps(1, 9, 272, 34, torch.float32, device)


def case_operator_equals_fp64_in_fp32(device):
    for shape in SHAPES:
        *sizes, heads = shape
        inputs = make_inputs(*sizes, torch.float32, device=device)
        errors = errors_against_fp64(ops.attention_pool, inputs, heads, impl="triton")
        assert max(errors.values()) < 2e-5, (shape, errors)
        assert not value_and_grads(ops.attention_pool, inputs, heads, impl="triton")["k_bias"].any()


def case_operator_in_half_precision_errs_no_more_than_usual_form(device):
    on_gpu = device == "cuda"
    # The products with weights of a CPU round what a GPU's keep in fp32. Both forms round the
    # attention's gradient on a GPU: of a bias's few hundred entries two such errors are 10% apart.
    slack = 1.1 if on_gpu else 1.4
    for dtype in (torch.bfloat16, torch.float16) if on_gpu else (torch.float16,):
        for shape in LARGE if on_gpu else [(4, 49, 256, 4)]:
            *sizes, heads = shape
            inputs = make_inputs(*sizes, dtype, device=device)
            own = errors_against_fp64(ops.attention_pool, inputs, heads, impl="triton")
            usual = errors_against_fp64(ops.reference, inputs, heads)
            for name in own:
                assert own[name] <= slack * usual[name], (shape, name, own[name], usual[name])


def case_same_bits_twice(device):
    inputs = make_inputs(3, 49, 96, torch.float16, device=device)
    first, second = (
        value_and_grads(ops.attention_pool, inputs, 3, impl="triton") for _ in range(2)
    )
    assert all(torch.equal(first[name], second[name]) for name in first)


def case_empty_batch(device):
    inputs = make_inputs(0, 9, 24, torch.float32, device=device)
    result = value_and_grads(ops.attention_pool, inputs, 4, impl="triton")
    assert result["out"].shape == (0, 24)
    assert not result["positions"].any()


def case_too_many_tokens(device):
    from clipfast.kernels.attention_pool import configs

    inputs = make_inputs(1, 257, 8, torch.float32, device=device)
    assert ops.choose("auto", inputs["x"]) == "plain"
    with pytest.raises(ValueError, match="up to 256 tokens"):
        ops.attention_pool(*inputs.values(), 2, impl="triton")
    assert configs.MAX_TOKENS == ops.MAX_TRITON_TOKENS == 256


CASES = [name.removeprefix("case_") for name in dict(globals()) if name.startswith("case_")]


if __name__ == "__main__":
    run_cases({name: globals()[f"case_{name}"] for name in CASES})
