"""Calls of torch.ops.clipfast.adamw_ for tests: tensors of every layout and type, steps that start
from statistics in mid-training, and the comparison of two such calls bit by bit."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from clipfast.ops.adamw import BLOCK, encode, split_master

HALVES = (torch.float16, torch.bfloat16)
TYPES = (torch.float32, *HALVES)
SHAPES = ((1,), (7,), (255,), (256,), (257,), (0,), (8, 125), (4, 3, 5, 7))
OPTIONS = {
    **{"lr": 1e-2, "beta1": 0.9, "beta2": 0.98, "eps": 1e-8, "weight_decay": 0.1},
    **{"maximum": float("inf"), "seed": -(7**20), "stochastic": True, "grid": ""},
}


class Form(NamedTuple):
    """How weights are kept: the parameter's type, its master's type, and the grid."""

    param: torch.dtype
    master: torch.dtype | None = None
    grid: str = ""


FORMS = (
    *(Form(torch.float32), Form(torch.float32, grid="bf16"), Form(torch.float32, grid="fp16")),
    *(Form(half, master) for half in HALVES for master in (None, torch.float32)),
    Form(torch.bfloat16, torch.int16),
)
CASES = tuple(itertools.product(FORMS, TYPES, TYPES))  # form, gradients, statistics


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

    def tensors(self) -> Iterator[Tensor]:
        """Everything that a step may write."""
        fields = (self.params, self.exp_avgs, self.exp_avg_sqs, self.exponents, self.masters)
        return itertools.chain(*fields)


def as_laid_out(t: Tensor) -> Tensor:
    """4-D tensors in channels_last, matrices transposed, all else as it is."""
    if t.dim() == 4:
        return t.contiguous(memory_format=torch.channels_last)
    return t.t().contiguous().t() if t.dim() == 2 else t


def make_call(
    form: Form,
    grad_dtype: torch.dtype = torch.float32,
    stats: torch.dtype = torch.float16,
    shapes: tuple[tuple[int, ...], ...] = SHAPES,
    step: int = 3,
) -> Call:
    """A call with random tensors whose magnitudes span several decades, some of them zero.

    Args:
        form: how weights are kept.
        grad_dtype: type of the gradients.
        stats: type of the statistics.
        shapes: one a parameter; non-contiguous but dense where they have 2 or 4 dimensions.
        step: number of the update.

    Returns:
        The call, for `torch.ops.clipfast.adamw_(*call, **OPTIONS)`.
    """
    call = Call([], [], [], [], [], [], [], [], torch.tensor([0.5, 0.0]))
    first = 3 * BLOCK
    for shape in shapes:
        decades = torch.randint(-6, 1, shape) * torch.randint(0, 2, shape)
        signs = torch.randn(shape) * (torch.rand(shape) > 0.02)
        grad, m = as_laid_out(signs * 10.0**decades), as_laid_out(torch.randn(shape) * 1e-2)
        v = as_laid_out(torch.rand(shape) ** 8)
        weight = as_laid_out(torch.randn(shape) * 10.0**decades)
        codes = [encode(x, stats) for x in (m, v if stats == torch.float32 else v.sqrt())]
        if form.master == torch.int16:
            param, master = split_master(weight)
        else:
            param, master = weight.to(form.param), weight.clone()
        call.params.append(param)
        call.grads.append(grad.to(grad_dtype))
        call.exp_avgs.append(codes[0][0])
        call.exp_avg_sqs.append(codes[1][0])
        if stats == torch.float16:
            call.exponents.append(torch.stack([codes[0][1], codes[1][1]]))
        if form.master is not None:
            call.masters.append(master)
        call.steps.append(torch.tensor(float(step)))
        call.first_elements.append(first)
        first += (weight.numel() // BLOCK + 1) * BLOCK
    return call


def assert_same_bits(ours: Call, theirs: Call) -> None:
    """Every tensor of two calls is equal, NaN to NaN, and -0 is not 0."""
    for mine, other in zip(ours.tensors(), theirs.tensors(), strict=True):
        assert mine.dtype == other.dtype
        assert mine.stride() == other.stride()
        if mine.is_floating_point():
            same = (mine == other) & (mine.signbit() == other.signbit())
            assert (same | (mine.isnan() & other.isnan())).all(), (mine.shape, mine.dtype)
        else:
            assert torch.equal(mine, other), (mine.shape, mine.dtype)


def step_agrees_with(reference, call: Call, **changes) -> None:
    """Runs the operator and `reference` on copies of one call and compares their results."""
    options = OPTIONS | changes
    ours, theirs = call.clone(), call.clone()
    torch.ops.clipfast.adamw_(*ours, **options)
    reference(*theirs, **options)
    assert_same_bits(ours, theirs)
