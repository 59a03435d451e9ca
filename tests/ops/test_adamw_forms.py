"""The AdamW operators give the plain form's bits on this CPU, as emulated CUDA, and on a GPU."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from clipfast.ops import adamw
from clipfast.ops.adamw import plain
from tests.ops.adamw_cases import (
    BF16,
    F16,
    F32,
    FORMS,
    GROUPS,
    OPTIONS,
    REMAINDER,
    SINGLE,
    SIZES,
    STOCHASTIC,
    TYPES,
    Call,
    Form,
    assert_same_bits,
    check_call,
    check_steps,
    make_call,
    make_mixed_call,
    place,
)


@pytest.mark.parametrize("stats", TYPES, ids=str)
@pytest.mark.parametrize("form", FORMS, ids=str)
def test_a_step_in_mid_training(adamw_target, form, stats):
    for grad_dtype in TYPES:
        check_call(adamw_target, make_call(form, grad_dtype, stats), grid=form.grid)


@pytest.mark.parametrize("stats", TYPES, ids=str)
@pytest.mark.parametrize("group", GROUPS)
def test_first_steps_of_mixed_tensors(adamw_target, group, stats):
    check_steps(adamw_target, make_mixed_call(group, stats, SIZES), grid=GROUPS[group][0].grid)


@pytest.mark.parametrize("stats", TYPES, ids=str)
@pytest.mark.parametrize("form", [Form(F16, F32), Form(BF16, F32)], ids=str)
def test_masters_follow_parameters_that_were_set_by_hand(adamw_target, form, stats):
    call = make_call(form, F32, stats)
    for param in call.params:
        is_set = torch.rand(param.shape) < 0.1
        param.copy_(torch.where(is_set, torch.randn(param.shape).to(param), param))
    check_call(adamw_target, call)
    # A step that moves nothing shows what it took for the weights.
    ops, device = adamw_target
    before, after = call.clone(), call.to(device)
    ops.adamw_(*after, **OPTIONS | {"lr": 0.0})
    for param, master, now, moved in zip(
        before.params, before.masters, after.params, after.masters, strict=True
    ):
        torch.testing.assert_close(now.cpu(), param, rtol=0, atol=0)
        kept = master.to(param.dtype) == param
        assert torch.equal(moved.cpu(), torch.where(kept, master, param.float()))


@pytest.mark.parametrize("value", [0.0, -0.0, math.inf, -math.inf, 2.0**-133, 3.38e38], ids=str)
def test_remainders_of_parameters_that_were_set_by_hand(adamw_target, value):
    call = make_call(REMAINDER)
    for param in call.params:
        param.fill_(value)
    check_call(adamw_target, call)
    ops, device = adamw_target
    after = call.to(device)
    ops.adamw_(*after, **OPTIONS | {"lr": 0.0})
    for now, param in zip(after.params, call.params, strict=True):
        assert torch.equal(now.cpu(), param)


@pytest.mark.parametrize("stats", TYPES, ids=str)
def test_views_off_16_byte_boundaries(adamw_target, stats):
    for offset in (1, 4):
        call = make_mixed_call("masters", stats, (257, 1000, 600), offset, turn=offset)
        assert call.params[1].data_ptr() % 16 != 0
        check_steps(adamw_target, call, 1)


@pytest.mark.parametrize(
    "options",
    [
        {"stochastic": False},
        {"maximum": 0.25},
        {"eps": 0.0, "weight_decay": 0.0},
        {"lr": 3.0, "beta1": 0.0, "beta2": 0.999},
        {"seed": 2**62 + 12345},
    ],
    ids=str,
)
def test_other_options(adamw_target, options):
    for group, stats in (("alone", F16), ("masters", BF16)):
        check_steps(adamw_target, make_mixed_call(group, stats, (1000, 512, 257)), **options)
    for form in GROUPS["alone"]:
        check_call(adamw_target, make_call(form), **options)


def test_far_elements_and_late_steps(adamw_target):
    # A draw's index beyond 32 bits, and a step whose powers underflow.
    call = make_call(STOCHASTIC, step=1_000_003)
    call.first_elements[:] = [2**37 + first for first in call.first_elements]
    check_call(adamw_target, call)


@pytest.mark.parametrize("stats", TYPES, ids=str)
@pytest.mark.parametrize("form", FORMS, ids=str)
def test_numbers_that_are_not_finite_and_huge_ones(adamw_target, form, stats):
    call = make_call(form, F32, stats, shapes=((3000,),))
    for i, value in enumerate((math.inf, -math.inf, math.nan, 1e30, -1e18, 1e-30)):
        call.grads[0][100 + i * 400] = value
    check_call(adamw_target, call, grid=form.grid)
    call = make_call(form, F32, stats, shapes=((3000,),))
    call.params[0][5::500] = math.nan
    call.params[0][6::500] = math.inf
    check_call(adamw_target, call, grid=form.grid)


@pytest.mark.parametrize(("dtype", "grid"), [(F16, "fp16"), (BF16, "bf16")], ids=str)
def test_largest_weights_stay_finite_where_they_are_rounded_stochastically(
    adamw_target, dtype, grid
):
    largest = torch.finfo(dtype).max
    for form in (Form(dtype), Form(F32, grid=grid)):
        call = make_call(form, shapes=((5000,),))
        call.params[0].fill_(largest).mul_(torch.randn(5000).sign())
        # Away from zero, by less than would overflow fp32.
        call.grads[0].copy_(-call.params[0].sign())
        lr = 1000.0 if dtype == F16 else 1e36
        check_call(adamw_target, call, lr=lr, weight_decay=0.0, grid=form.grid)
        assert call.params[0].abs().eq(largest).all()


def test_nearest_is_not_stochastic(adamw_target):
    ops, device = adamw_target
    call = make_mixed_call("alone", F16, (512,), turn=1)
    call.steps[0].fill_(1.0)
    runs = []
    for stochastic in (True, False):
        runs.append(call.to(device))
        ops.adamw_(*runs[-1], **OPTIONS | {"stochastic": stochastic})
    assert (runs[0].params[0] != runs[1].params[0]).any()
    assert (runs[0].exp_avgs[0] != runs[1].exp_avgs[0]).any()


@pytest.mark.parametrize("stats", TYPES, ids=str)
def test_pieces_of_a_flat_tensor_have_the_bits_that_they_would_have_alone(adamw_target, stats):
    ops, device = adamw_target
    call = make_call(Form(BF16), F32, stats, shapes=((2000,), (300,), (700,))).to(device)
    starts, numbers = [0, 512, 1792, 0, 0, 256], [2560, 0, 25600, 512, 5120, 10240]
    alone = Call([], [], [], [], [], [], [], [], call.control.clone())
    for i, cuts in enumerate(((0, 512, 1792, 2000), (0, 300), (0, 256, 700))):
        for a, b in itertools.pairwise(cuts):
            for mine, theirs in zip(alone[:4], call[:4], strict=True):
                mine.append(theirs[i][a:b].clone())
            if call.exponents:
                part = call.exponents[i][:, a // 256 : -(-b // 256)]
                alone.exponents.append(part.clone(memory_format=torch.contiguous_format))
            alone.steps.append(call.steps[i].clone())
    ops.adamw_(*alone._replace(first_elements=numbers), **OPTIONS)
    ops.adamw_(*call._replace(first_elements=numbers), **OPTIONS, starts=starts)
    for mine, theirs in zip(alone[:4], call[:4], strict=True):
        assert torch.equal(torch.cat(mine), torch.cat(theirs))
    if call.exponents:
        assert torch.equal(torch.cat(alone.exponents, 1), torch.cat(call.exponents, 1))


@pytest.mark.parametrize("stats", TYPES, ids=str)
def test_pieces_have_the_same_bits_in_plain_torch(adamw_target, stats):
    ops, device = adamw_target
    call = make_call(Form(BF16), F32, stats, shapes=((1000,), (300,)))
    numbers = {"starts": [0, 256, 0]}
    ours = call._replace(first_elements=[2560, 0, 512])
    theirs = ours.to(device)
    plain.step(*ours, **OPTIONS, **numbers)
    ops.adamw_(*theirs, **OPTIONS, **numbers)
    assert_same_bits(theirs, ours)


@pytest.mark.parametrize(
    ("starts", "numbers"),
    [
        ([0], [0, 256]),
        ([0, 0, 0], [0, 256, 512]),
        ([0, 256], [0, 256]),
        ([256, 0], [0, 256]),
        ([0, 100, 0], [0, 256, 512]),
        ([0, 1024, 0], [0, 256, 512]),
        ([0, 512, 256, 0], [0, 256, 512, 768]),
    ],
    ids=str,
)
def test_pieces_that_are_none_are_refused(adamw_target, starts, numbers):
    ops, device = adamw_target
    call = make_call(Form(BF16), shapes=((1000,), (300,))).to(device)
    before = call.clone()
    with pytest.raises((RuntimeError, ValueError), match=r"starts|first_elements"):
        ops.adamw_(*call._replace(first_elements=numbers), **OPTIONS, starts=starts)
    assert torch.equal(before.params[0], call.params[0])
    with pytest.raises(ValueError, match=r"starts|first_elements"):
        plain.step(*before._replace(first_elements=numbers), **OPTIONS, starts=starts)


def test_one_large_tensor(adamw_target):
    check_steps(adamw_target, make_mixed_call("masters", F16, (70001,)), 1)


def test_more_tensors_than_a_launch_takes(adamw_target):
    check_steps(adamw_target, make_mixed_call("alone", F16, [1 + i % 40 for i in range(340)]), 1)


def test_memory_formats_are_taken_as_they_lie(adamw_target):
    call = make_mixed_call("masters", BF16, (2 * 3 * 5 * 7,))
    turned = [
        [t.view(2, 5, 7, 3).permute(0, 3, 1, 2) for t in tensors]
        if i in (0, 1, 2, 3, 5)
        else tensors
        for i, tensors in enumerate(call)
    ]
    check_steps(adamw_target, Call(*turned), 1)


def test_control_skips_the_step_and_scales_gradients(adamw_target):
    for call in (make_mixed_call("masters", F16, (1000, 7)), make_call(STOCHASTIC)):
        call.control[1] = 1.0
        call.grads[0][0] = math.nan
        before = call.clone()
        check_call(adamw_target, call)
        assert_same_bits(call, before)
    scaled = make_call(SINGLE)
    unscaled = scaled.clone()
    scaled.control[0], unscaled.control[0] = 2.0**-9, 1.0
    for grad in unscaled.grads:
        grad.mul_(2.0**-9)
    check_call(adamw_target, scaled)
    check_call(adamw_target, unscaled)
    assert_same_bits(scaled._replace(grads=[]), unscaled._replace(grads=[]))


@pytest.mark.parametrize("stats", TYPES, ids=str)
def test_magnitudes_at_the_ends_of_the_short_ways(adamw_target, stats):
    # A lane's elements are alike, and lanes go over all binades that its block can hold.
    call = make_mixed_call("alone", stats, [adamw.BLOCK] * 9)
    for i, grad in enumerate(call.grads):
        call.grads[i] = torch.exp2(torch.linspace(i, i - 45, adamw.BLOCK)).copysign(grad)
    call.grads[3] = call.grads[3] * 2.0**30
    call.grads[4] = call.grads[4] * 2.0**-60
    call.grads[5] = call.grads[5] * 2.0**100
    for step in call.steps:
        step += 1
    check_call(adamw_target, call)


def test_denominators_past_the_short_way(adamw_target):
    call = make_mixed_call("bf16 grid", F32, (1000,))
    call.params[0].zero_()
    call.steps[0] += 1
    check_call(adamw_target, call, lr=1e30, eps=2e38)


def test_largest_numbers_and_nans_of_weights(adamw_target):
    for group in ("bf16 grid", "alone", "masters"):
        call = make_mixed_call(group, BF16, (300,) * 3)
        for weight in call.params:
            weight.copy_(torch.finfo(weight.dtype).max * torch.linspace(0.98, 1.0, 300))
            weight.view(torch.int16)[7] = 0x7FFF
        for master in call.masters:
            master.view(torch.int16)[-8] = -1
        call.params[0][-1] = math.inf
        for step in call.steps:
            step += 1
        check_call(adamw_target, call, grid=GROUPS[group][0].grid, weight_decay=0.0)


def test_fp16_blocks_at_the_edge_of_subnormal_codes(adamw_target):
    # Powers of two alone: what is halved exactly ends at 2^-14 of its block's scale, or under it.
    smallest = [2.0**-14, 2.0**-14 - 2.0**-24, 2.0**-24, 0.0]
    call = make_mixed_call("bf16 grid", F16, [adamw.BLOCK] * len(smallest))
    for i, least in enumerate(smallest):
        call.grads[i].zero_()
        codes = torch.tensor([2.0**14, least, -least, 0.0, -0.0, 1.0, -1.5, 8191.0])
        call.exp_avgs[i].copy_(codes.repeat(adamw.BLOCK // 8))
        call.exp_avg_sqs[i].copy_(codes.abs().repeat(adamw.BLOCK // 8))
        call.exponents[i].copy_(torch.tensor([[3 - 20 * i], [2 - 15 * i]]))
        call.steps[i] += 1
    check_call(adamw_target, call, beta1=0.5, beta2=0.25)


def test_fp16_blocks_at_the_ends_of_their_exponents(adamw_target):
    sizes = [adamw.BLOCK] * 5
    call = make_mixed_call("bf16 grid", F16, sizes)
    spread = torch.linspace(0.5, 1, adamw.BLOCK)
    moments = [(3e38, 1.0), (1e-36, 0.0), (0.0, 0.0), (2.0**-98, 2.0**-49), (2.0**-99, 2.0**-50)]
    for i, sizes in enumerate(moments):
        call.grads[i].zero_()
        found = [adamw.encode(size * spread, F16) for size in sizes]
        for codes, (code, _) in zip((call.exp_avgs[i], call.exp_avg_sqs[i]), found, strict=True):
            codes.copy_(code)
        call.exponents[i].copy_(torch.stack([exponent for _, exponent in found]))
        call.steps[i] += 1
    assert call.exponents[0][0] == 127
    assert call.exponents[1][0] == -112
    check_call(adamw_target, call, beta1=1 - 2.0**-20)


def test_statistics_that_saturate(adamw_target):
    for stats in (F16, BF16):
        call = make_mixed_call("bf16 grid", stats, (300, 512))
        call.control[0] = 1.0
        for grad, step in zip(call.grads, call.steps, strict=True):
            grad.copy_(torch.finfo(grad.dtype).max * torch.linspace(-1.0, 1.0, grad.numel()))
            step += 1
        check_call(adamw_target, call, beta1=0.0)


@pytest.mark.parametrize("value", [math.inf, -math.inf], ids=str)
def test_infinite_masters_and_those_next_to_them(adamw_target, value):
    call = make_mixed_call("masters", F16, (300,))
    ends = adamw.float_of(torch.arange(300) + 0x7F7F7F00).copysign(torch.tensor(value))
    ends[100:120] = value
    high, low = adamw.split_master(ends)
    call.params[0].copy_(high)
    call.masters[0].copy_(low)
    call.steps[0] += 1
    check_call(adamw_target, call, lr=0.0)


def test_an_infinite_factor(adamw_target):
    # Lanes past a tensor's end hold zeros, and 0 times infinity is NaN: as all that exists.
    call = make_mixed_call("alone", F16, (3, 300))
    call.control[0] = math.inf
    check_steps(adamw_target, call, 1)


def norms():
    sizes = ((1, F32), (7, BF16), (0, F32), (255, F16), (70001, BF16), (999, F16), (200_003, F32))
    grads = [torch.randn(size).to(dtype) for size, dtype in sizes]
    grads.append(torch.randn(4, 5, 6, 7).contiguous(memory_format=torch.channels_last))
    yield grads
    yield [torch.randn(5) * 1e30, torch.randn(40000) * 1e-30]
    yield [torch.randn(1 + i % 90) for i in range(30)]
    yield [torch.zeros(0)]
    for dtype in TYPES:
        for i, value in ((0, math.inf), (31, -math.inf), (1023, math.nan), (70000, math.inf)):
            spoiled = [torch.ones(10), torch.ones(70001, dtype=dtype)]
            spoiled[1][i] = value
            yield spoiled


def test_grad_norm_agrees_with_fp64(adamw_target):
    ops, device = adamw_target
    for grads in norms():
        got = ops.adamw_grad_norm([grad.to(device) for grad in grads])
        want = torch.cat([grad.double().flatten() for grad in grads]).norm().float()
        assert got.dtype == F32
        assert got.shape == ()
        for norm in (got.cpu(), plain.grad_norm(grads)):
            torch.testing.assert_close(norm, want, rtol=1.2e-7, atol=0, equal_nan=True)
            assert norm.isfinite() == want.isfinite()


def test_grad_norm_has_one_order(adamw_target):
    ops, device = adamw_target
    grad = torch.randn(50001)
    whole, odd = (ops.adamw_grad_norm([place(grad, offset).to(device)]) for offset in (0, 1))
    assert whole == odd  # packs and single elements


def test_grad_norm_of_more_tensors_than_a_launch_takes(adamw_target):
    ops, device = adamw_target
    grads = [torch.full((1,), float(i)) for i in range(1200)]
    got = ops.adamw_grad_norm([grad.to(device) for grad in grads])
    assert float(got) == pytest.approx(math.sqrt(1199 * 1200 * 2399 / 6), rel=1.2e-7)


def test_wrong_arguments_are_explained(adamw_target):
    ops, device = adamw_target
    call = make_mixed_call("alone", BF16, (1000, 7)).to(device)
    with pytest.raises(RuntimeError, match="grads of length 2"):
        ops.adamw_(*call._replace(grads=call.grads[:1]), **OPTIONS)
    with pytest.raises(RuntimeError, match="multiple of 256"):
        ops.adamw_(*call._replace(first_elements=[0, 7]), **OPTIONS)
    with pytest.raises(RuntimeError, match="elements fill"):
        ops.adamw_grad_norm([torch.zeros(1, device=device).expand(4)])
