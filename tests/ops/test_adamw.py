"""torch.ops.clipfast.adamw_ and adamw_grad_norm on the CPU: the same bits for every capability and
number of threads, unbiased rounding, errors. Results of every form are in test_adamw_forms.py."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from clipfast.ops.adamw import BLOCK, decode, plain
from clipfast.ops.adamw.lists import lists_fit
from tests.ops.adamw_cases import (
    HALVES,
    OPTIONS,
    REMAINDER,
    SINGLE,
    STOCHASTIC,
    TYPES,
    Call,
    Form,
    assert_same_bits,
    make_call,
)

ROOT = Path(__file__).resolve().parents[2]
needs_extension = pytest.mark.needs("extension")


def run(call: Call, **changes) -> Call:
    torch.ops.clipfast.adamw_(*call, **OPTIONS | changes)
    return call


@needs_extension
@pytest.mark.parametrize("form", [SINGLE, STOCHASTIC, REMAINDER], ids=str)
def test_adamw_same_bits_for_any_number_of_threads(form):
    call = make_call(form, torch.bfloat16, shapes=((70001,), (5,), (300, 301), (40000,)))
    expected = call.clone()
    plain.step(*expected, **OPTIONS)
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            assert_same_bits(run(call.clone()), expected)
    finally:
        torch.set_num_threads(before)


# All that runs on the CPU of test_adamw_forms.py.
AGREES = """
import sys
import pytest, torch
from clipfast.ops.extension import load_extension
from tests.ops.adamw_cases import TYPES
options = ["-q", "-p", "no:cacheprovider", "-k", "cpu", "tests/ops/test_adamw_forms.py"]
if pytest.main(options) != 0:
    sys.exit(1)
grads = [torch.linspace(-3, 2, n).to(t) for n, t in ((70001, TYPES[0]), (999, TYPES[2]))]
print(load_extension().cpu_capability, torch.ops.clipfast.adamw_grad_norm(grads).item())
"""


@needs_extension
def test_adamw_lesser_cpu_capabilities_same_bits_as_the_plain_form():
    order = ["default", "avx2", "avx512"]
    machine = torch.backends.cpu.get_cpu_capability().lower()
    lesser = order[: order.index(machine)] if machine in order else []
    if not lesser:
        pytest.skip(f"this machine has {machine} alone, which the other tests run")
    norms = set()
    for capability in lesser:
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", AGREES],
            capture_output=True,
            text=True,
            cwd=ROOT,
            env={**os.environ, "CLIPFAST_CPU_CAPABILITY": capability, "PYTHONPATH": str(ROOT)},
        )
        name, _, norm = done.stdout.strip().splitlines()[-1].partition(" ")
        assert name == capability, done.stdout + done.stderr
        norms.add(norm)
    grads = [torch.linspace(-3, 2, n).to(t) for n, t in ((70001, TYPES[0]), (999, TYPES[2]))]
    assert norms == {str(torch.ops.clipfast.adamw_grad_norm(grads).item())}


@pytest.mark.parametrize("form", [SINGLE, STOCHASTIC], ids=str)
@pytest.mark.parametrize("stats", TYPES)
def test_adamw_slices_at_multiples_of_256_equal_the_whole(form, stats):
    whole = make_call(form, stats=stats, shapes=((2000,),))
    cuts = ((0, 512), (512, 1792), (1792, 2000))
    exponents = [
        whole.exponents[0][:, a // BLOCK : -(-b // BLOCK)] for a, b in cuts if stats == HALVES[0]
    ]
    parts = Call(
        *([t[0][a:b].clone() for a, b in cuts] for t in whole[:4]),
        [e.clone() for e in exponents],
        [],
        whole.steps * 3,
        [whole.first_elements[0] + a for a, _ in cuts],
        whole.control,
    )
    run(whole)
    run(parts)
    for ours, theirs in zip(whole[:4], parts[:4], strict=True):
        assert torch.equal(ours[0], torch.cat(theirs))
    if exponents:
        assert torch.equal(whole.exponents[0], torch.cat(parts.exponents, dim=1))


def test_adamw_without_tensors_or_elements_does_nothing():
    run(make_call(SINGLE, shapes=((0,), (3, 0))))
    before = make_call(SINGLE, shapes=((5,),))
    assert not torch.equal(run(before.clone()).params[0], before.params[0])


@pytest.mark.parametrize("beta2", [0.98, 0.999])
def test_adamw_fp32_error_is_at_most_torchs(beta2):
    weight = torch.randn(3001)
    call = make_call(SINGLE, stats=torch.float32, shapes=((3001,),))
    for name in ("exp_avgs", "exp_avg_sqs"):
        getattr(call, name)[0].zero_()
    call.params[0].copy_(weight)
    call.control[0] = 1.0
    theirs = {t: torch.nn.Parameter(weight.to(t)) for t in (torch.float32, torch.float64)}
    options = {"lr": 1e-2, "betas": (0.9, beta2), "eps": 1e-8, "weight_decay": 0.1}
    peers = [(p, torch.optim.AdamW([p], **options)) for p in theirs.values()]
    for step in range(1, 31):
        call.grads[0].copy_(torch.randn(3001) * 10.0 ** torch.randint(-5, 1, (3001,)))
        call.steps[0].fill_(step)
        run(call, beta2=beta2)
        for parameter, optimizer in peers:
            parameter.grad = call.grads[0].to(parameter.dtype)
            optimizer.step()
    exact = theirs[torch.float64].detach()
    bound = (theirs[torch.float32].detach() - exact).norm() + 1e-7 * exact.norm()
    assert (call.params[0] - exact).norm() <= bound


ROUNDED = [
    *((torch.float16, x) for x in (1 + 2**-11, 1 + 2**-13, -1.0001, 1234.567, 2.0**-14 * 1.0003)),
    *((torch.float16, x) for x in (2.0**-25, 1e-8, -3.1e-6, 2.0**-24 * 1.5, 6.0974e-5)),
    *((torch.bfloat16, x) for x in (1 + 2**-8, 1 + 2**-13, -1.003, 1234.567)),
    *((torch.bfloat16, x) for x in (1e-40, -(2.0**-134), 2.0**-126 * 1.003)),
]


@pytest.mark.parametrize(("dtype", "value"), ROUNDED, ids=str)
def test_adamw_stochastic_rounding_is_unbiased(dtype, value):
    # A step with lr 0 rounds the weight and does nothing else to it.
    count = 100_000
    grid = "fp16" if dtype == torch.float16 else "bf16"
    call = make_call(Form(torch.float32, grid=grid), shapes=((count,),))
    call.params[0].fill_(value)
    exact = call.params[0][0].double().item()
    got = run(call, lr=0.0, grid=grid).params[0].double()
    assert torch.equal(got.to(dtype).double(), got)
    neighbours = got.unique()
    assert len(neighbours) == 2
    assert neighbours[0] < exact < neighbours[1]
    assert abs(got.mean() - exact) <= 5 * got.std() / count**0.5
    call.params[0].fill_(value)
    nearest = run(call, lr=0.0, grid=grid, stochastic=False).params[0].double()
    assert torch.equal(nearest, nearest[:1].expand(count))
    assert abs(nearest[0] - exact) > 5 * got.std() / count**0.5


def test_adamw_representable_weights_are_left_as_they_are():
    for dtype in HALVES:
        bits = torch.arange(-(2**15), 2**15, dtype=torch.int16)
        weight = bits.view(dtype)
        call = make_call(Form(dtype), shapes=(tuple(weight.shape),))
        call.params[0].copy_(weight)
        got = run(call, lr=0.0).params[0]
        assert torch.equal(got[weight.isfinite()], weight[weight.isfinite()])
        assert got[weight.isnan()].isnan().all()


def test_adamw_fp16_block_of_twelve_decades_is_unbiased():
    decades = 10.0 ** -torch.linspace(0, 12, BLOCK)
    blocks = 2000
    call = make_call(SINGLE, shapes=((blocks * BLOCK,),))
    for tensor in (*call.exp_avgs, *call.exp_avg_sqs):
        tensor.zero_()
    call.control[0] = 1.0
    call.grads[0].copy_(decades.repeat(blocks))
    run(call)
    exact_m = decades.double() * 0.1
    for code, exponents, exact in (
        (call.exp_avgs[0], call.exponents[0][0], exact_m),
        (call.exp_avg_sqs[0], call.exponents[0][1], decades.double() * 0.02**0.5),
    ):
        value = decode(code, exponents).view(blocks, BLOCK).double()
        error = (value.mean(0) - exact).abs()
        # fp32 itself errs by 1e-7; 5 standard errors beyond that.
        assert (error <= 5 * value.std(0) / blocks**0.5 + 3e-7 * exact).all()
        assert ((value - exact).abs() <= exact * 2**-10 * 1.001 + exact[0] * 2**-36).all()


@needs_extension
@pytest.mark.parametrize("form", [SINGLE, STOCHASTIC, REMAINDER], ids=str)
def test_adamw_opcheck(form):
    call = make_call(form, shapes=((5,), (300,), (2, 3, 4, 5)))
    torch.library.opcheck(torch.ops.clipfast.adamw_, tuple(call), OPTIONS)
    torch.library.opcheck(torch.ops.clipfast.adamw_grad_norm, (call.grads,))


def broken(field: str, value, form: Form = SINGLE, stats: torch.dtype = torch.float16) -> Call:
    """A call of one [8, 125] parameter with another value of a field, or its tensor changed."""
    call = make_call(form, stats=stats, shapes=((8, 125),))
    old = getattr(call, field)
    return call._replace(**{field: [value(old[0])] if callable(value) else value})


WRONG_CALLS = [
    ("grads", [], {}, r"grads of length 1 like params, got 0"),
    ("grads", lambda t: t.double(), {}, r"grads\[0\] of type float32.*got Double"),
    ("grads", lambda t: t.contiguous(), {}, r"strides \[1, 8\].*got \[8, 125\] \[125, 1\]"),
    ("grads", lambda t: t[:4], {}, r"shape \[8, 125\].*got \[4, 125\]"),
    (
        "params",
        lambda t: t.expand(8, 125)[:1].expand(8, 125),
        {},
        r"params\[0\] whose elements fill",
    ),
    ("exp_avgs", lambda t: t.float(), {}, r"no exponents with other statistics, got 1 with Float"),
    ("exp_avg_sqs", lambda t: t.float(), {}, r"one type, Half.*got Half and Float at 0"),
    ("exponents", [], {}, r"exponents with float16 statistics, got 0"),
    ("exponents", lambda t: t[:, :3], {}, r"exponents\[0\] of shape \[2, 4\].*got \[2, 3\]"),
    ("masters", lambda t: t.float(), {"form": Form(torch.float32)}, r"float32, which is its own"),
    (
        *("masters", lambda t: torch.zeros_like(t, dtype=torch.int16)),
        *({"form": Form(torch.float16, torch.float32)}, r"masters\[0\].*got Short with Half"),
    ),
    ("steps", lambda t: t.double(), {}, r"steps\[0\] of 1 adjacent float32.*Double"),
    ("steps", lambda t: t * 0, {}, r"steps from 1 on, got 0"),
    ("steps", lambda t: t * math.inf, {}, r"steps that 32 bits count, got inf"),
    ("first_elements", [100], {}, r"first_elements\[0\] to be a multiple of 256, got 100"),
    ("control", torch.ones(3), {}, r"control\[0\] of 2 adjacent float32 elements, got \[3\]"),
]


@needs_extension
@pytest.mark.parametrize(("field", "value", "options", "message"), WRONG_CALLS)
def test_adamw_errors_show_expected_and_given(field, value, options, message):
    if field == "masters" and options["form"] == SINGLE:
        call = make_call(SINGLE, shapes=((8, 125),))
        call.masters.append(call.params[0].clone())
    else:
        call = broken(field, value, **options)
    with pytest.raises(RuntimeError, match=message):
        run(call)


@pytest.mark.parametrize("number", [-1.0, 0.0, 2.0**32, math.inf, math.nan])
def test_adamw_plain_form_refuses_what_counts_no_step(number):
    call = make_call(SINGLE, shapes=((8, 125), (3,)))
    before = [tensor.clone() for tensor in call.params]
    call.steps[1].fill_(number)
    with pytest.raises(ValueError, match="expected steps from 1 on that 32 bits count"):
        plain.step(*call, **OPTIONS)
    assert all(map(torch.equal, call.params, before))


def fits(call: Call, params: torch.dtype = torch.float32) -> bool:
    return lists_fit(call[:7], params, torch.float16, None, torch.device("cpu"))


# Not those whose values are wrong, or what is no tensor of a list.
WRONG_LISTS = [
    (field, value)
    for field, value, _, message in WRONG_CALLS
    if field not in ("first_elements", "control", "masters") and "steps" not in message[:5]
]


@needs_extension
@pytest.mark.parametrize(("field", "value"), WRONG_LISTS)
def test_adamw_lists_fit_refuses_what_the_operator_does(field, value):
    assert not fits(broken(field, value))


@needs_extension
def test_adamw_lists_fit_looks_at_types_and_not_at_values():
    call = make_call(SINGLE, stats=torch.float16, shapes=((8, 125),))
    assert fits(call)
    assert not fits(call, torch.bfloat16)
    call.steps[0].fill_(math.inf)
    assert fits(call)
    call.steps[0] = call.steps[0].double()
    assert not fits(call)
    assert not fits(make_call(REMAINDER, stats=torch.float16, shapes=((8, 125),)), torch.bfloat16)


class _Wrapped(torch.Tensor):
    pass


@needs_extension
def test_adamw_lists_fit_plain_tensors_alone():
    call = make_call(SINGLE, stats=torch.float16, shapes=((8, 125),))
    call.exp_avgs[0] = call.exp_avgs[0].as_subclass(_Wrapped)
    assert not fits(call)
    call.exp_avgs[0] = 1.0
    assert not fits(call)


def test_adamw_sparse_gradients_are_refused():
    with pytest.raises(TypeError, match=r"dense gradients, got torch\.sparse_coo"):
        run(broken("grads", lambda t: t.to_sparse()))


@needs_extension
def test_adamw_option_errors_show_expected_and_given():
    for changes, message in (
        ({"grid": "fp8"}, r"grid '', 'bf16' or 'fp16', got 'fp8'"),
        ({"lr": float("nan")}, r"finite lr >= 0.*got lr nan"),
        ({"beta2": 1.0}, r"betas in \[0, 1\), got.*0.9 1"),
        ({"maximum": float("nan")}, r"maximum"),
    ):
        with pytest.raises(RuntimeError, match=message):
            run(make_call(SINGLE, shapes=((3,),)), **changes)
    with pytest.raises(RuntimeError, match=r"params\[0\] of type float32 with grid 'bf16', got BF"):
        run(make_call(STOCHASTIC, shapes=((3,),)), grid="bf16")


@needs_extension
def test_adamw_grad_norm_same_bits_for_any_number_of_threads():
    sizes = (1, 7, 0, 255, 70001, 200_003)
    grads = [torch.randn(n).to(TYPES[i % 3]) for i, n in enumerate(sizes)]
    norm = torch.ops.clipfast.adamw_grad_norm(grads)
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            assert torch.equal(torch.ops.clipfast.adamw_grad_norm(grads), norm)
    finally:
        torch.set_num_threads(before)


@needs_extension
def test_adamw_grad_norm_errors_show_expected_and_given():
    with pytest.raises(RuntimeError, match=r"grads\[0\] whose elements fill.*\[3, 4\]"):
        torch.ops.clipfast.adamw_grad_norm([torch.ones(3, 8)[:, ::2]])
    with pytest.raises(RuntimeError, match=r"grads\[1\] of type float32.*Long"):
        torch.ops.clipfast.adamw_grad_norm([torch.ones(3), torch.ones(3).long()])


WITHOUT_EXTENSION = """
import importlib.util
real = importlib.util.find_spec
importlib.util.find_spec = lambda name, *a: None if name == "clipfast._C" else real(name, *a)
import torch
from tests.ops.adamw_cases import OPTIONS, STOCHASTIC, check_call, make_call
call = make_call(STOCHASTIC, shapes=((300,), (4, 5)))
check_call((torch.ops.clipfast, "cpu"), call)
before = call.clone()
torch.ops.clipfast.adamw_(*call, **OPTIONS)
assert not torch.equal(before.params[0], call.params[0])
norm = torch.ops.clipfast.adamw_grad_norm([torch.ones(4), torch.ones(5)])
assert norm.item() == 3.0
print("works")
"""


def test_adamw_without_the_extension_is_plain_torch():
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", WITHOUT_EXTENSION],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.stdout.strip() == "works", done.stderr
