"""The AdamW operators give the plain form's bits on this CPU, as emulated CUDA, and on a GPU."""

from __future__ import annotations

import copy
import math

import pytest
import torch

from clipfast.ops import adamw
from tests.ops.adamw_calls import (
    BF16,
    F16,
    F32,
    OPTIONS,
    SIZES,
    check_call,
    check_same,
    check_steps,
    make,
    make_lists,
)
from tests.ops.adamw_cases import Call

FORMS = [("alone", ""), ("masters", ""), ("grid", "bf16"), ("grid", "fp16")]


@pytest.mark.parametrize("stats", [F16, BF16, F32], ids=str)
@pytest.mark.parametrize(("form", "grid"), FORMS, ids=str)
def test_steps_are_the_bits_of_the_plain_form(adamw_target, form, grid, stats):
    check_steps(adamw_target, make_lists(stats, form, SIZES), grid=grid)


@pytest.mark.parametrize("stats", [F16, BF16, F32], ids=str)
def test_views_off_16_byte_boundaries(adamw_target, stats):
    for offset in (1, 4):
        lists = make_lists(stats, "masters", (257, 1000, 600), offset, kinds_from=offset)
        assert lists.params[1].data_ptr() % 16 != 0
        check_steps(adamw_target, lists, 1)


@pytest.mark.parametrize(
    "options", [{"stochastic": False}, {"maximum": 0.5}, {"eps": 0.0}], ids=str
)
def test_other_options(adamw_target, options):
    for stats, form in ((F16, "alone"), (BF16, "masters")):
        check_steps(adamw_target, make_lists(stats, form, (1000, 512, 257)), **options)


def test_nearest_is_not_stochastic(adamw_target):
    ops, device = adamw_target
    lists = make_lists(F16, "alone", (512,), kinds_from=1)
    lists.steps[0].fill_(1.0)
    runs = []
    for stochastic in (True, False):
        runs.append(lists.to(device))
        ops.adamw_(*runs[-1], **{**OPTIONS, "stochastic": stochastic})
    assert (runs[0].params[0] != runs[1].params[0]).any()
    assert (runs[0].exp_avgs[0] != runs[1].exp_avgs[0]).any()


def test_one_large_tensor(adamw_target):
    check_steps(adamw_target, make_lists(F16, "masters", (70001,)), 1)


def test_more_tensors_than_a_launch_takes(adamw_target):
    check_steps(adamw_target, make_lists(F16, "alone", [1 + i % 40 for i in range(340)]), 1)


def test_memory_formats_are_taken_as_they_lie(adamw_target):
    lists = make_lists(BF16, "masters", (2 * 3 * 5 * 7,))
    turned = [
        [t.view(2, 5, 7, 3).permute(0, 3, 1, 2) for t in tensors]
        if i in (0, 1, 2, 3, 5)
        else tensors
        for i, tensors in enumerate(lists)
    ]
    check_steps(adamw_target, Call(*turned), 1)


def test_a_skipped_step_changes_nothing(adamw_target):
    ops, device = adamw_target
    lists = make_lists(F16, "masters", (1000, 7))
    lists.control[1] = 1.0
    lists.grads[0][0] = math.nan
    got = lists.to(device)
    ops.adamw_(*got, **OPTIONS)
    check_same(got, lists)


@pytest.mark.parametrize("stats", [F16, BF16, F32], ids=str)
def test_magnitudes_at_the_ends_of_the_short_ways(adamw_target, stats):
    # A lane's elements are alike, and lanes go over all binades that its block can hold.
    lists = make_lists(stats, "alone", [adamw.BLOCK] * 9)
    for i, grad in enumerate(lists.grads):
        lists.grads[i] = torch.exp2(torch.linspace(i, i - 45, adamw.BLOCK)).copysign(grad)
    lists.grads[3] = lists.grads[3] * 2.0**30
    lists.grads[4] = lists.grads[4] * 2.0**-60
    lists.grads[5] = lists.grads[5] * 2.0**100
    for step in lists.steps:
        step += 1
    check_call(adamw_target, lists)


def test_denominators_past_the_short_way(adamw_target):
    lists = make_lists(F32, "grid", (1000,))
    lists.params[0].zero_()
    lists.steps[0] += 1
    check_call(adamw_target, lists, lr=1e30, eps=2e38)


def test_largest_numbers_and_nans_of_weights(adamw_target):
    for form, grid in (("grid", "bf16"), ("alone", ""), ("masters", "")):
        lists = make_lists(BF16, form, (300,) * 3)
        for weight in lists.params:
            weight.copy_(torch.finfo(weight.dtype).max * torch.linspace(0.98, 1.0, 300))
            weight.view(torch.int16)[7] = 0x7FFF
        for master in lists.masters:
            master.view(torch.int16)[-8] = -1
        lists.params[0][-1] = math.inf
        for step in lists.steps:
            step += 1
        check_call(adamw_target, lists, grid=grid, weight_decay=0.0)


def test_fp16_blocks_at_the_edge_of_subnormal_codes(adamw_target):
    # Powers of two alone: what is halved exactly ends at 2^-14 of its block's scale, or under it.
    smallest = [2.0**-14, 2.0**-14 - 2.0**-24, 2.0**-24, 0.0]
    lists = make_lists(F16, "grid", [adamw.BLOCK] * len(smallest))
    for i, least in enumerate(smallest):
        lists.grads[i].zero_()
        codes = torch.tensor([2.0**14, least, -least, 0.0, -0.0, 1.0, -1.5, 8191.0])
        lists.exp_avgs[i].copy_(codes.repeat(adamw.BLOCK // 8))
        lists.exp_avg_sqs[i].copy_(codes.abs().repeat(adamw.BLOCK // 8))
        lists.exponents[i].copy_(torch.tensor([[3 - 20 * i], [2 - 15 * i]]))
        lists.steps[i] += 1
    check_call(adamw_target, lists, beta1=0.5, beta2=0.25)


def test_fp16_blocks_at_the_ends_of_their_exponents(adamw_target):
    sizes = [adamw.BLOCK] * 5
    lists = make_lists(F16, "grid", sizes)
    spread = torch.linspace(0.5, 1, adamw.BLOCK)
    moments = [(3e38, 1.0), (1e-36, 0.0), (0.0, 0.0), (2.0**-98, 2.0**-49), (2.0**-99, 2.0**-50)]
    for i, sizes in enumerate(moments):
        lists.grads[i].zero_()
        found = [adamw.encode(size * spread, F16) for size in sizes]
        for codes, (code, _) in zip((lists.exp_avgs[i], lists.exp_avg_sqs[i]), found, strict=True):
            codes.copy_(code)
        lists.exponents[i].copy_(torch.stack([exponent for _, exponent in found]))
        lists.steps[i] += 1
    assert lists.exponents[0][0] == 127
    assert lists.exponents[1][0] == -112
    check_call(adamw_target, lists, beta1=1 - 2.0**-20)


def test_statistics_that_saturate(adamw_target):
    for stats in (F16, BF16):
        lists = make_lists(stats, "grid", (300, 512))
        lists.control[0] = 1.0
        for grad, step in zip(lists.grads, lists.steps, strict=True):
            grad.copy_(torch.finfo(grad.dtype).max * torch.linspace(-1.0, 1.0, grad.numel()))
            step += 1
        check_call(adamw_target, lists, beta1=0.0)


@pytest.mark.parametrize("value", [math.inf, -math.inf], ids=str)
def test_infinite_masters_and_those_next_to_them(adamw_target, value):
    lists = make_lists(F16, "masters", (300,))
    ends = adamw.float_of(torch.arange(300) + 0x7F7F7F00).copysign(torch.tensor(value))
    ends[100:120] = value
    high, low = adamw.split_master(ends)
    lists.params[0].copy_(high)
    lists.masters[0].copy_(low)
    lists.steps[0] += 1
    check_call(adamw_target, lists, lr=0.0)


def test_an_infinite_factor(adamw_target):
    # Lanes past a tensor's end hold zeros, and 0 times infinity is NaN: as all that exists.
    lists = make_lists(F16, "alone", (3, 300))
    lists.control[0] = math.inf
    check_steps(adamw_target, lists, 1)


def norms():
    grads = [torch.randn(n).to(d) for n, d in ((1, F32), (70001, BF16), (0, F32), (999, F16))]
    yield grads
    yield [torch.randn(5) * 1e30, torch.randn(40000) * 1e-30]
    yield [torch.randn(1 + i % 90) for i in range(30)]
    yield [torch.zeros(0)]
    for value in (math.inf, -math.inf, math.nan):
        spoiled = copy.deepcopy(grads)
        spoiled[1][70000] = value
        yield spoiled


def test_grad_norm_agrees_with_fp64(adamw_target):
    ops, device = adamw_target
    for grads in norms():
        got = ops.adamw_grad_norm([grad.to(device) for grad in grads])
        want = torch.cat([grad.double().flatten() for grad in grads]).norm().float()
        assert got.dtype == F32
        assert got.shape == ()
        torch.testing.assert_close(got.cpu(), want, rtol=1.2e-7, atol=0, equal_nan=True)


def test_grad_norm_has_one_order(adamw_target):
    ops, device = adamw_target
    grad = torch.randn(50001)
    whole, odd = (ops.adamw_grad_norm([make(grad, F32, offset).to(device)]) for offset in (0, 1))
    assert whole == odd  # packs and single elements


def test_grad_norm_of_more_tensors_than_a_launch_takes(adamw_target):
    ops, device = adamw_target
    grads = [torch.full((1,), float(i)) for i in range(1200)]
    got = ops.adamw_grad_norm([grad.to(device) for grad in grads])
    assert float(got) == pytest.approx(math.sqrt(1199 * 1200 * 2399 / 6), rel=1.2e-7)


def test_wrong_arguments_are_explained(adamw_target):
    ops, device = adamw_target
    lists = make_lists(BF16, "alone", (1000, 7)).to(device)
    with pytest.raises(RuntimeError, match="grads of length 2"):
        ops.adamw_(*lists._replace(grads=lists.grads[:1]), **OPTIONS)
    with pytest.raises(RuntimeError, match="multiple of 256"):
        ops.adamw_(*lists._replace(first_elements=[0, 7]), **OPTIONS)
    with pytest.raises(RuntimeError, match="elements fill"):
        ops.adamw_grad_norm([torch.zeros(1, device=device).expand(4)])
