"""Calls of the operator ``adamw_`` with tensors of many kinds, compared with its plain form."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from clipfast.ops import adamw
from tests.ops.adamw_cases import Call

F32, F16, BF16 = torch.float32, torch.float16, torch.bfloat16
SIZES = (1, 7, 255, 257, 1000, 0, 512, 2900)
OPTIONS = {
    **{"lr": 3e-3, "beta1": 0.9, "beta2": 0.98, "eps": 1e-8, "weight_decay": 0.2},
    **{"maximum": math.inf, "seed": 0x123456789ABCDEF, "stochastic": True, "grid": ""},
}


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


def make_lists(stats: torch.dtype, form: str, sizes, offset: int = 0, kinds_from: int = 0) -> Call:
    """A call's tensors before their first step; types go round."""
    lists = Call([], [], [], [], [], [], [], [], torch.tensor([0.25, 0.0]))
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


def set_grads(lists: Call, spread: float) -> None:
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


def check_same(got: Call, want: Call) -> None:
    for name, a_list, b_list in zip(Call._fields[:6], got, want, strict=False):
        for i, (a, b) in enumerate(zip(a_list, b_list, strict=True)):
            assert a.dtype == b.dtype
            differing = int((bits(a) != bits(b)).sum())
            assert differing == 0, f"{name}[{i}]: {differing} of {a.numel()} differ"


def check_call(target, lists: Call, **options) -> None:
    """Calls the operator and the plain form with the same tensors."""
    ops, device = target
    got = lists.to(device)
    ops.adamw_(*got, **{**OPTIONS, **options})
    adamw.plain.step(*lists, **{**OPTIONS, **options})
    check_same(got, lists)


def check_steps(target, lists: Call, count: int = 2, **options) -> None:
    """Makes steps with gradients of its own."""
    for k in range(count):
        for step in lists.steps:
            step += 1
        set_grads(lists, spread=0.5 + 2 * k)
        check_call(target, lists, **options)
