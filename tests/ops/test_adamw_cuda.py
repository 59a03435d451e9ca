"""The CUDA form of the AdamW operators: emulated on the CPU, compiled, and on a GPU if any.

tests/cuda_emulator runs csrc's kernels and host code on the CPU. The same checks run on a GPU.
"""

from __future__ import annotations

import copy
import math
import re
import shutil
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from clipfast.ops import adamw
from tests import cuda_emulator
from tests.cuda_emulator import nvcc, volta

KERNELS = [cuda_emulator.CSRC / kernel for kernel in cuda_emulator.ADAMW_KERNELS]
F32, F16, BF16 = torch.float32, torch.float16, torch.bfloat16
SIZES = (1, 7, 255, 257, 1000, 0, 512, 2900)
OPTIONS = {
    **{"lr": 3e-3, "beta1": 0.9, "beta2": 0.98, "eps": 1e-8, "weight_decay": 0.2},
    **{"maximum": math.inf, "seed": 0x123456789ABCDEF, "stochastic": True, "grid": ""},
}


@pytest.fixture(scope="session")
def emulated(tmp_path_factory):
    reason = cuda_emulator.obstacle()
    if reason is not None:
        pytest.skip(reason)
    cuda_emulator.load(tmp_path_factory.mktemp("cuda_emulator"))
    return torch.ops.clipfast_emulated, "cpu"


@pytest.fixture(params=["emulated", pytest.param("gpu", marks=pytest.mark.gpu)])
def target(request):
    """(operators, device)"""
    if request.param == "emulated":
        return request.getfixturevalue("emulated")
    from clipfast.ops.extension import has_cuda_operators

    if not has_cuda_operators():
        pytest.skip("clipfast._C has no CUDA operators")
    return torch.ops.clipfast, "cuda"


class Lists(NamedTuple):
    """The tensors of a call."""

    params: list[Tensor]
    grads: list[Tensor]
    exp_avgs: list[Tensor]
    exp_avg_sqs: list[Tensor]
    exponents: list[Tensor]
    masters: list[Tensor]
    steps: list[Tensor]
    first_elements: list[int]
    control: Tensor

    def to(self, device: str) -> Lists:
        """A copy whose tensors lie as far from 16-byte boundaries as these."""

        def move(t):
            if not isinstance(t, Tensor):
                return t
            whole = t.as_strided((t.storage_offset() + t.numel(),), (1,), 0)
            return whole.to(device, copy=True).as_strided(t.shape, t.stride(), t.storage_offset())

        return Lists(*(move(t) if isinstance(t, Tensor) else [move(x) for x in t] for t in self))


def kinds(form: str) -> list[tuple[torch.dtype, torch.dtype | None]]:
    """(param, master) types that one call may mix."""
    if form == "masters":
        return [(BF16, torch.int16), (F16, F32), (BF16, F32)]
    return [(F32, None), (BF16, None), (F16, None)] if form == "alone" else [(F32, None)]


def make(values: Tensor, dtype: torch.dtype, offset: int) -> Tensor:
    """values as dtype, `offset` elements from the beginning of their memory."""
    room = torch.zeros(offset + values.numel(), dtype=dtype)
    room[offset:] = values.flatten()
    return room[offset:].view(values.shape)


def make_lists(stats: torch.dtype, form: str, sizes, offset: int = 0, kinds_from: int = 0) -> Lists:
    """A call's tensors before their first step; types go round."""
    lists = Lists([], [], [], [], [], [], [], [], torch.tensor([0.25, 0.0]))
    first = 0
    for i, size in enumerate(sizes):
        mixed = kinds(form)
        param_type, master_type = mixed[(i + kinds_from) % len(mixed)]
        weight = torch.randn(size)
        if master_type == torch.int16:
            high, low = adamw.split_master(weight)
            lists.masters.append(make(low, master_type, offset))
            weight = high.float()
        elif master_type is not None:
            lists.masters.append(make(weight, master_type, offset))
        lists.params.append(make(weight, param_type, offset))
        grad_type = (F32, BF16, F16)[(i // 2 + kinds_from) % 3]
        lists.grads.append(make(torch.randn(size), grad_type, offset))
        lists.exp_avgs.append(make(torch.zeros(size), stats, offset))
        lists.exp_avg_sqs.append(make(torch.zeros(size), stats, offset))
        blocks = -(-size // adamw.BLOCK)
        if stats == F16:
            lists.exponents.append(torch.zeros(2, blocks, dtype=torch.int8))
        lists.steps.append(torch.tensor(float([0, 999, 12345][i % 3])))
        lists.first_elements.append(first + (i % 2) * (1 << 40))
        first += blocks * adamw.BLOCK
    return lists


def set_grads(lists: Lists, spread: float) -> None:
    """Gradients of many sizes; with one element infinite and one NaN where spread > 1."""
    for i, grad in enumerate(lists.grads):
        size = torch.exp(spread * torch.randn(grad.shape)) * 10.0 ** -(i % 7)
        grad.copy_(torch.randn(grad.shape) * size)
        if grad.numel() >= 512:
            grad[300:420] = 0.0
            grad[::50] = 0.0
        if grad.numel() == 1000 and spread > 1:
            grad[3], grad[700] = math.inf, math.nan


def bits(t: Tensor) -> Tensor:
    """What has to be equal; any NaN equals any other."""
    t = t.cpu()
    if not t.dtype.is_floating_point:
        return t
    kind = torch.int32 if t.dtype == F32 else torch.int16
    return torch.where(t.isnan(), -1, t.contiguous().view(kind))


def check_same(got: Lists, want: Lists) -> None:
    for name, a_list, b_list in zip(Lists._fields[:6], got, want, strict=False):
        for i, (a, b) in enumerate(zip(a_list, b_list, strict=True)):
            assert a.dtype == b.dtype
            differing = int((bits(a) != bits(b)).sum())
            assert differing == 0, f"{name}[{i}]: {differing} of {a.numel()} differ"


def check_call(target, lists: Lists, **options) -> None:
    """Calls the operator and the plain form with the same tensors."""
    ops, device = target
    got = lists.to(device)
    ops.adamw_(*got, **{**OPTIONS, **options})
    adamw.reference_step(*lists, **{**OPTIONS, **options})
    check_same(got, lists)


def check_steps(target, lists: Lists, count: int = 2, **options) -> None:
    """Makes steps with gradients of its own."""
    for k in range(count):
        for step in lists.steps:
            step += 1
        set_grads(lists, spread=0.5 + 2 * k)
        check_call(target, lists, **options)


FORMS = [("alone", ""), ("masters", ""), ("grid", "bf16"), ("grid", "fp16")]


@pytest.mark.parametrize("stats", [F16, BF16, F32], ids=str)
@pytest.mark.parametrize(("form", "grid"), FORMS, ids=str)
def test_steps_are_the_bits_of_the_plain_form(target, form, grid, stats):
    check_steps(target, make_lists(stats, form, SIZES), grid=grid)


@pytest.mark.parametrize("stats", [F16, BF16, F32], ids=str)
def test_views_off_16_byte_boundaries(target, stats):
    for offset in (1, 4):
        lists = make_lists(stats, "masters", (257, 1000, 600), offset, kinds_from=offset)
        assert lists.params[1].data_ptr() % 16 != 0
        check_steps(target, lists, 1)


@pytest.mark.parametrize(
    "options", [{"stochastic": False}, {"maximum": 0.5}, {"eps": 0.0}], ids=str
)
def test_other_options(target, options):
    for stats, form in ((F16, "alone"), (BF16, "masters")):
        check_steps(target, make_lists(stats, form, (1000, 512, 257)), **options)


def test_nearest_is_not_stochastic(target):
    ops, device = target
    lists = make_lists(F16, "alone", (512,), kinds_from=1)
    lists.steps[0].fill_(1.0)
    runs = []
    for stochastic in (True, False):
        runs.append(lists.to(device))
        ops.adamw_(*runs[-1], **{**OPTIONS, "stochastic": stochastic})
    assert (runs[0].params[0] != runs[1].params[0]).any()
    assert (runs[0].exp_avgs[0] != runs[1].exp_avgs[0]).any()


def test_one_large_tensor(target):
    check_steps(target, make_lists(F16, "masters", (70001,)), 1)


def test_more_tensors_than_a_launch_takes(target):
    check_steps(target, make_lists(F16, "alone", [1 + i % 40 for i in range(340)]), 1)


def test_memory_formats_are_taken_as_they_lie(target):
    lists = make_lists(BF16, "masters", (2 * 3 * 5 * 7,))
    turned = [
        [t.view(2, 5, 7, 3).permute(0, 3, 1, 2) for t in tensors]
        if i in (0, 1, 2, 3, 5)
        else tensors
        for i, tensors in enumerate(lists)
    ]
    check_steps(target, Lists(*turned), 1)


def test_a_skipped_step_changes_nothing(target):
    ops, device = target
    lists = make_lists(F16, "masters", (1000, 7))
    lists.control[1] = 1.0
    lists.grads[0][0] = math.nan
    got = lists.to(device)
    ops.adamw_(*got, **OPTIONS)
    check_same(got, lists)


@pytest.mark.parametrize("stats", [F16, BF16, F32], ids=str)
def test_magnitudes_at_the_ends_of_the_short_ways(target, stats):
    # A lane's elements are alike, and lanes go over all binades that its block can hold.
    lists = make_lists(stats, "alone", [adamw.BLOCK] * 9)
    for i, grad in enumerate(lists.grads):
        lists.grads[i] = torch.exp2(torch.linspace(i, i - 45, adamw.BLOCK)).copysign(grad)
    lists.grads[3] = lists.grads[3] * 2.0**30
    lists.grads[4] = lists.grads[4] * 2.0**-60
    lists.grads[5] = lists.grads[5] * 2.0**100
    for step in lists.steps:
        step += 1
    check_call(target, lists)


def test_denominators_past_the_short_way(target):
    lists = make_lists(F32, "grid", (1000,))
    lists.params[0].zero_()
    lists.steps[0] += 1
    check_call(target, lists, lr=1e30, eps=2e38)


def test_largest_numbers_and_nans_of_weights(target):
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
        check_call(target, lists, grid=grid, weight_decay=0.0)


def test_an_infinite_factor(target):
    # Lanes past a tensor's end hold zeros, and 0 times infinity is NaN: as all that exists.
    lists = make_lists(F16, "alone", (3, 300))
    lists.control[0] = math.inf
    check_steps(target, lists, 1)


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


def test_grad_norm_agrees_with_fp64(target):
    ops, device = target
    for grads in norms():
        got = ops.adamw_grad_norm([grad.to(device) for grad in grads])
        want = torch.cat([grad.double().flatten() for grad in grads]).norm().float()
        assert got.dtype == F32
        assert got.shape == ()
        torch.testing.assert_close(got.cpu(), want, rtol=1.2e-7, atol=0, equal_nan=True)


def test_grad_norm_has_one_order(target):
    ops, device = target
    grad = torch.randn(50001)
    whole, odd = (ops.adamw_grad_norm([make(grad, F32, offset).to(device)]) for offset in (0, 1))
    assert whole == odd  # packs and single elements


def test_grad_norm_of_more_tensors_than_a_launch_takes(target):
    ops, device = target
    grads = [torch.full((1,), float(i)) for i in range(1200)]
    got = ops.adamw_grad_norm([grad.to(device) for grad in grads])
    assert float(got) == pytest.approx(math.sqrt(1199 * 1200 * 2399 / 6), rel=1.2e-7)


def test_results_are_the_same_bits_in_any_order_of_threads(emulated, monkeypatch):
    ops, _ = emulated
    lists = make_lists(F16, "masters", (2900, 257))
    set_grads(lists, 0.5)
    for step in lists.steps:
        step += 1
    runs = []
    for order in ("0", "1"):
        monkeypatch.setenv("CLIPFAST_EMULATOR_REVERSED", order)
        runs.append(lists.to("cpu"))
        ops.adamw_(*runs[-1], **OPTIONS)
        norm = ops.adamw_grad_norm(lists.grads)
    check_same(*runs)
    monkeypatch.setenv("CLIPFAST_EMULATOR_REVERSED", "0")
    assert norm == ops.adamw_grad_norm(lists.grads)


def test_wrong_arguments_are_explained(target):
    ops, device = target
    lists = make_lists(BF16, "alone", (1000, 7)).to(device)
    with pytest.raises(RuntimeError, match="grads of length 2"):
        ops.adamw_(*lists._replace(grads=lists.grads[:1]), **OPTIONS)
    with pytest.raises(RuntimeError, match="multiple of 256"):
        ops.adamw_(*lists._replace(first_elements=[0, 7]), **OPTIONS)
    with pytest.raises(RuntimeError, match="elements fill"):
        ops.adamw_grad_norm([torch.zeros(1, device=device).expand(4)])


@pytest.fixture
def gpu_operators():
    from clipfast.ops.extension import has_cuda_operators

    if not has_cuda_operators():
        pytest.skip("clipfast._C has no CUDA operators")
    return torch.ops.clipfast


@pytest.mark.gpu
def test_a_captured_step_goes_on_without_the_host(gpu_operators):
    lists = make_lists(F16, "masters", SIZES)
    set_grads(lists, 0.5)
    start, moved = lists.to("cuda"), lists.to("cuda")
    norm = torch.zeros((), device="cuda")

    def step():
        for t in moved.steps:
            t.add_(1)
        norm.copy_(gpu_operators.adamw_grad_norm(moved.grads))
        gpu_operators.adamw_(*moved, **OPTIONS)

    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    for now, then in zip(moved[:7], start[:7], strict=True):
        for a, b in zip(now, then, strict=True):
            a.copy_(b)
    for _ in range(3):
        graph.replay()
        for t in lists.steps:
            t += 1
        adamw.reference_step(*lists, **OPTIONS)
    check_same(moved, lists)
    torch.testing.assert_close(norm.cpu(), adamw.reference_grad_norm(lists.grads))


@pytest.mark.gpu
def test_roots_and_quotients_of_all_mantissas(gpu_operators):
    # The kernel's own steps from the hardware's approximations, over two binades of v; m is 1.
    count = 1 << 24
    lists = make_lists(F32, "grid", (count,))
    lists.params[0].zero_()
    lists.grads[0].zero_()
    lists.exp_avgs[0].fill_(2.0)
    lists.exp_avg_sqs[0].copy_(adamw.float_of(torch.arange(count) + (127 << 23)))
    lists.steps[0].fill_(1.0)
    options = {**OPTIONS, "beta1": 0.5, "beta2": 0.5, "eps": 0.0, "weight_decay": 0.0}
    got = lists.to("cuda")
    gpu_operators.adamw_(*got, **options)
    gpu_operators.adamw_(*lists, **options)
    check_same(got, lists)


ENTRIES = {"adamw_kernel": 3, "adamw_norm_kernel": 2}


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not on PATH")
@pytest.mark.parametrize("source", KERNELS, ids=lambda path: path.stem)
def test_cuda_adamw_compiles_without_spills(source, tmp_path):
    words, archs = nvcc.assemble(source, tmp_path)
    assert words.count("Used ") == ENTRIES[source.stem] * archs
    assert set(re.findall(r"(\d+) bytes spill", words)) == {"0"}


@pytest.mark.skipif(volta.parts() is None, reason=volta.REMEDY)
@pytest.mark.parametrize("source", KERNELS, ids=lambda path: path.stem)
def test_cuda_adamw_compiles_for_v100_without_spills(source, tmp_path):
    words = volta.assemble(volta.compile_to_ptx(source), tmp_path)
    assert words.count("Compiling entry function") == ENTRIES[source.stem]
    assert set(re.findall(r"(\d+) bytes spill", words)) == {"0"}
