"""Calls of the AdamW operators for tests: one maker of tensors, one comparison, bit by bit."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from clipfast.ops.adamw import BLOCK, encode, plain, split_master

F32, F16, BF16 = TYPES = (torch.float32, torch.float16, torch.bfloat16)
HALVES = (F16, BF16)
SHAPES = ((1,), (7,), (255,), (256,), (257,), (0,), (8, 125), (4, 3, 5, 7))
SIZES = (1, 7, 255, 257, 1000, 0, 512, 2900)
OPTIONS = {
    **{"lr": 1e-2, "beta1": 0.9, "beta2": 0.98, "eps": 1e-8, "weight_decay": 0.1},
    **{"maximum": math.inf, "seed": -(7**20), "stochastic": True, "grid": ""},
}


class Form(NamedTuple):
    """How weights are kept: the parameter's type, its master's type, and the grid."""

    param: torch.dtype
    master: torch.dtype | None = None
    grid: str = ""


SINGLE, STOCHASTIC, REMAINDER = Form(F32), Form(BF16), Form(BF16, torch.int16)
# What one call may mix.
GROUPS = {
    "alone": (SINGLE, STOCHASTIC, Form(F16)),
    "masters": (REMAINDER, Form(F16, F32), Form(BF16, F32)),
    "bf16 grid": (Form(F32, grid="bf16"),),
    "fp16 grid": (Form(F32, grid="fp16"),),
}
FORMS = tuple(itertools.chain(*GROUPS.values()))


class Call(NamedTuple):
    """The tensors of one call; fields in the operator's order."""

    params: list[Tensor]
    grads: list[Tensor]
    exp_avgs: list[Tensor]
    exp_avg_sqs: list[Tensor]
    exponents: list[Tensor]
    masters: list[Tensor]
    steps: list[Tensor]
    first_elements: list[int]
    control: Tensor

    def clone(self) -> Call:
        """A copy that shares no memory."""
        lists = [[t.clone() for t in field] for field in self[:7]]
        return Call(*lists, list(self.first_elements), self.control.clone())

    def to(self, device: str) -> Call:
        """A copy whose tensors lie as far from 16-byte boundaries as these, strides kept."""

        def move(t: Tensor) -> Tensor:
            whole = t.as_strided((t.storage_offset() + t.numel(),), (1,), 0)
            return whole.to(device, copy=True).as_strided(t.shape, t.stride(), t.storage_offset())

        lists = [[move(t) for t in field] for field in self[:7]]
        return Call(*lists, list(self.first_elements), move(self.control))

    def add(
        self,
        form: Form,
        stats: torch.dtype,
        grad: Tensor,
        values: tuple[Tensor, Tensor, Tensor],
        step: float,
        first: int,
        offset: int = 0,
    ) -> None:
        """Adds a parameter.

        Args:
            form: how its weights are kept.
            stats: type of its statistics.
            grad: its gradient, of any type; the shape and strides of all else.
            values: weight, first and second moment in fp32.
            step: number of the update.
            first: index of its first element among all.
            offset: elements between the beginning of each tensor's memory and the tensor.
        """
        weight, m, v = values
        param, master = weight.to(form.param), weight.clone()
        if form.master == torch.int16:
            param, master = split_master(weight)
        codes = [encode(x, stats) for x in (m, v if stats == F32 else v.sqrt())]
        self.params.append(place(param, offset))
        self.grads.append(place(grad, offset))
        self.exp_avgs.append(place(codes[0][0], offset))
        self.exp_avg_sqs.append(place(codes[1][0], offset))
        if stats == F16:
            self.exponents.append(torch.stack([codes[0][1], codes[1][1]]))
        if form.master is not None:
            self.masters.append(place(master, offset))
        self.steps.append(torch.tensor(float(step)))
        self.first_elements.append(first)


def place(t: Tensor, offset: int) -> Tensor:
    """A copy with t's strides, `offset` elements from the beginning of its memory."""
    room = t.new_zeros(offset + t.numel()).as_strided(t.shape, t.stride(), offset)
    return room.copy_(t)


def as_laid_out(t: Tensor) -> Tensor:
    """4-D tensors in channels_last, matrices transposed, all else as it is."""
    if t.dim() == 4:
        return t.contiguous(memory_format=torch.channels_last)
    return t.t().contiguous().t() if t.dim() == 2 else t


def make_call(
    form: Form,
    grad_dtype: torch.dtype = F32,
    stats: torch.dtype = F16,
    shapes: tuple[tuple[int, ...], ...] = SHAPES,
    step: int = 3,
) -> Call:
    """A call in mid-training, whose magnitudes span several decades, some of them zero.

    Args:
        form: how weights are kept.
        grad_dtype: type of the gradients.
        stats: type of the statistics.
        shapes: one per parameter; non-contiguous but dense where they have 2 or 4 dimensions.
        step: number of the update.

    Returns:
        The call, for `torch.ops.clipfast.adamw_(*call, **OPTIONS)`.
    """
    call = Call([], [], [], [], [], [], [], [], torch.tensor([0.5, 0.0]))
    first = 3 * BLOCK
    for shape in shapes:
        decades = torch.randint(-6, 1, shape) * torch.randint(0, 2, shape)
        signs = torch.randn(shape) * (torch.rand(shape) > 0.02)
        grad = as_laid_out(signs * 10.0**decades).to(grad_dtype)
        values = (torch.randn(shape) * 10.0**decades, torch.randn(shape) * 1e-2)
        weight, m, v = map(as_laid_out, (*values, torch.rand(shape) ** 8))
        call.add(form, stats, grad, (weight, m, v), step, first)
        first += (weight.numel() // BLOCK + 1) * BLOCK
    return call


def make_mixed_call(
    group: str,
    stats: torch.dtype,
    sizes: Sequence[int],
    offset: int = 0,
    turn: int = 0,
) -> Call:
    """A call before its first step, whose vectors differ in form, gradient, step and distance.

    Args:
        group: of GROUPS; its forms go round.
        stats: type of the statistics.
        sizes: one per parameter.
        offset: elements that tensors lie from the beginning of their memory.
        turn: where forms and types of gradients begin.

    Returns:
        The call; its steps are one short, for :func:`check_steps`.
    """
    call = Call([], [], [], [], [], [], [], [], torch.tensor([0.25, 0.0]))
    forms, first = GROUPS[group], 0
    for i, size in enumerate(sizes):
        grad = torch.randn(size).to((F32, BF16, F16)[(i // 2 + turn) % 3])
        zeros = torch.zeros(size)
        values = (torch.randn(size), zeros, zeros)
        place_among_all = first + (i % 2) * (1 << 40)
        form, step = forms[(i + turn) % len(forms)], (0, 999, 12345)[i % 3]
        call.add(form, stats, grad, values, step, place_among_all, offset)
        first += -(-size // BLOCK) * BLOCK
    for exponents in call.exponents:
        exponents.zero_()
    return call


def set_grads(call: Call, spread: float) -> None:
    """Gradients of many sizes; with one element infinite and one NaN where spread > 1."""
    for i, grad in enumerate(call.grads):
        size = torch.exp(spread * torch.randn(grad.shape)) * 10.0 ** -(i % 7)
        grad.copy_(torch.randn(grad.shape) * size)
        if grad.numel() >= 512:
            grad[300:420] = 0.0
            grad[::50] = 0.0
        if grad.numel() == 1000 and spread > 1:
            grad[3], grad[700] = math.inf, math.nan


def bits(t: Tensor) -> Tensor:
    """What has to be equal: -0 is not 0, and any NaN equals any other."""
    t = t.cpu()
    if not t.dtype.is_floating_point:
        return t
    kind = torch.int32 if t.dtype == F32 else torch.int16
    return torch.where(t.isnan(), -1, t.contiguous().view(kind))


def assert_same_bits(ours: Call, theirs: Call) -> None:
    """Every tensor of two calls, gradients and all, has the same type, strides and bits."""
    for name in Call._fields[:7]:
        for i, (a, b) in enumerate(zip(getattr(ours, name), getattr(theirs, name), strict=True)):
            assert (a.dtype, a.shape, a.stride()) == (b.dtype, b.shape, b.stride()), (name, i)
            differing = int((bits(a) != bits(b)).sum())
            assert differing == 0, f"{name}[{i}]: {differing} of {a.numel()} differ"


def check_call(target, call: Call, **changes) -> None:
    """Makes the plain form's step with a call, and the operator's with a copy: the same bits.

    Args:
        target: (operators, device).
        call: on the CPU; afterwards it has made the step.
        changes: of OPTIONS.
    """
    ops, device = target
    ours = call.to(device)
    ops.adamw_(*ours, **OPTIONS | changes)
    plain.step(*call, **OPTIONS | changes)
    assert_same_bits(ours, call)


def check_steps(target, call: Call, count: int = 2, **changes) -> None:
    """Makes steps with gradients of its own."""
    for k in range(count):
        for step in call.steps:
            step += 1
        set_grads(call, spread=0.5 + 2 * k)
        check_call(target, call, **changes)
