"""Arguments for every operator of csrc: right ones of odd shapes, and what becomes of them."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from clipfast.ops.adamw import BLOCK, encode, split_master

F32, F16, BF16, F64 = torch.float32, torch.float16, torch.bfloat16, torch.float64
SIZES = (1, 2, 3, 5, 7, 8, 13, 16, 17, 31, 32, 33, 64, 65, 127, 130)


class Call(NamedTuple):
    """One call of torch.ops.clipfast.

    Attributes:
        operator: its name.
        arguments: by position.
        keywords: by name.
    """

    operator: str
    arguments: list[Any]
    keywords: dict[str, Any]


def _normal(*shape: int, dtype: torch.dtype = F32) -> Tensor:
    return torch.randn(*shape).to(dtype)


def _l2_normalize(chance: random.Random) -> Call:
    dtype = chance.choice((F32, F16, BF16, F64))
    out = chance.choice((None, F64)) if dtype == F64 else chance.choice((None, F32, F16, BF16))
    x = _normal(chance.choice(SIZES), chance.choice(SIZES), dtype=dtype)
    return Call("l2_normalize", [x, chance.choice((0.0, 1e-12)), out], {})


def _l2_normalize_backward(chance: random.Random) -> Call:
    dtype = chance.choice((F32, F16, BF16, F64))
    x = _normal(chance.choice(SIZES), chance.choice(SIZES), dtype=dtype)
    inverse = 1 / x.to(F64 if dtype == F64 else F32).norm(dim=1)
    return Call("l2_normalize_backward", [_normal(*x.shape, dtype=dtype), x, inverse], {})


def _linear(chance: random.Random) -> Call:
    rows = [chance.choice(SIZES) for _ in range(chance.choice((1, 2)))]
    inner, out = chance.choice(SIZES), chance.choice(SIZES)
    weight = _normal(out, inner) if chance.random() < 0.5 else _normal(inner, out).t()
    bias = _normal(out) if chance.random() < 0.5 else None
    return Call("linear", [_normal(*rows, inner), weight, bias], {})


def _linear_backward(chance: random.Random) -> Call:
    rows, inner, out = (chance.choice(SIZES) for _ in range(3))
    x = _normal(rows, inner) if chance.random() < 0.8 else None
    weight = _normal(out, inner) if chance.random() < 0.8 else None
    flags = [chance.random() < 0.5, chance.random() < 0.5]
    return Call("linear_backward", [_normal(rows, out), x, weight, *flags], {})


def _bmm(chance: random.Random) -> Call:
    batch, rows, inner, columns = (chance.choice(SIZES[:10]) for _ in range(4))
    b = (
        _normal(batch, columns, inner).mT
        if chance.random() < 0.5
        else _normal(batch, inner, columns)
    )
    return Call("bmm", [_normal(batch, rows, inner), b], {})


def _quick_gelu(chance: random.Random) -> Call:
    shape = [chance.choice(SIZES) for _ in range(chance.randint(1, 3))]
    return Call("quick_gelu", [_normal(*shape, dtype=chance.choice((F32, F16, BF16, F64)))], {})


def _quick_gelu_backward(chance: random.Random) -> Call:
    (x,) = _quick_gelu(chance).arguments
    return Call("quick_gelu_backward", [torch.randn_like(x), x], {})


def _images(chance: random.Random, dtype: torch.dtype) -> Tensor:
    batch, channels = chance.choice((1, 2, 3)), chance.choice(SIZES)
    height, width = (2 * chance.choice((1, 2, 3, 5)) for _ in range(2))
    x = _normal(batch, channels, height, width, dtype=dtype)
    return x.contiguous(memory_format=torch.channels_last)


def _channel_values(x: Tensor) -> list[Tensor]:
    wide = F64 if x.dtype == F64 else F32
    channels = x.shape[1]
    return [
        _normal(channels, dtype=wide),
        torch.rand(channels, dtype=wide) + 0.5,
        _normal(channels, dtype=wide),
        _normal(channels, dtype=wide),
    ]


def _batch_norm_statistics(chance: random.Random) -> Call:
    x = _images(chance, chance.choice((F32, F16, BF16, F64)))
    return Call("batch_norm_statistics", [x, 1e-5], {})


def _batch_norm_apply(chance: random.Random) -> Call:
    x = _images(chance, chance.choice((F32, F16, BF16, F64)))
    residual = torch.randn_like(x) if chance.random() < 0.4 else None
    want_y, want_pooled = chance.choice(((True, False), (False, True), (True, True)))
    if residual is not None:
        want_y, want_pooled = True, False
    flags = [chance.random() < 0.7, want_y, want_pooled]
    return Call("batch_norm_apply", [x, *_channel_values(x), residual, *flags], {})


def _batch_norm_backward(chance: random.Random) -> Call:
    x = _images(chance, chance.choice((F32, F16, BF16, F64)))
    relu, wants_residual = chance.random() < 0.7, chance.random() < 0.4
    y = torch.randn_like(x).clamp(min=0) if relu and wants_residual else None
    grad = torch.randn_like(x)
    values = _channel_values(x)
    return Call(
        "batch_norm_backward", [grad, None, x, y, *values, relu, wants_residual and relu], {}
    )


def _adamw(chance: random.Random) -> Call:
    stats = chance.choice((F16, BF16, F32))
    param_type, master_type, grid = chance.choice(
        (
            *((F32, None, ""), (F32, None, "bf16"), (F32, None, "fp16"), (BF16, None, "")),
            *((F16, None, ""), (BF16, torch.int16, ""), (BF16, F32, ""), (F16, F32, "")),
        )
    )
    lists: list[list[Any]] = [[] for _ in range(8)]
    first = 0
    for _ in range(chance.randint(1, 4)):
        size = chance.choice((0, 1, 7, 255, 256, 257, 1000))
        weight = _normal(size)
        param, master = weight.to(param_type), weight.clone()
        if master_type == torch.int16:
            param, master = split_master(weight)
        moments = [encode(x, stats) for x in (_normal(size) * 1e-2, torch.rand(size))]
        grad = _normal(size, dtype=chance.choice((F32, F16, BF16)))
        lists[0].append(param)
        lists[1].append(grad)
        lists[2].append(moments[0][0])
        lists[3].append(moments[1][0])
        if stats == F16:
            lists[4].append(torch.stack([moments[0][1], moments[1][1]]))
        if master_type is not None:
            lists[5].append(master)
        lists[6].append(torch.tensor(float(chance.choice((1, 2, 1000)))))
        lists[7].append(first)
        first += -(-size // BLOCK) * BLOCK
    keywords = {
        **{"lr": 1e-2, "beta1": 0.9, "beta2": 0.98, "eps": 1e-8, "weight_decay": 0.1},
        **{"maximum": chance.choice((float("inf"), 0.5)), "seed": chance.randrange(2**62)},
        **{"stochastic": chance.random() < 0.8, "grid": grid},
    }
    return Call("adamw_", [*lists, torch.tensor([0.5, 0.0])], keywords)


def _adamw_grad_norm(chance: random.Random) -> Call:
    grads = [
        _normal(chance.choice((0, 1, 7, 4097)), dtype=chance.choice((F32, F16, BF16)))
        for _ in range(chance.randint(1, 4))
    ]
    return Call("adamw_grad_norm", [grads], {})


def _strip(chance: random.Random) -> tuple[list[Tensor], int]:
    rows, width = chance.choice(SIZES), chance.choice(SIZES)
    first = chance.choice((0, 1, 5))
    columns = rows + first + chance.choice((0, 1, 9))
    x, y = _normal(rows, width), _normal(columns, width)
    scale = torch.tensor([chance.choice((1.0, 14.3, 100.0))])
    return [x, y, 1 / x.norm(dim=1), 1 / y.norm(dim=1), scale, scale.abs()], first


def _contrastive_prepare(chance: random.Random) -> Call:
    x = _normal(chance.choice(SIZES), chance.choice(SIZES), dtype=chance.choice((F32, F16, BF16)))
    work = chance.choice((None, F32)) if x.dtype == F32 else F32
    return Call("contrastive_prepare", [x, chance.random() < 0.7, work], {})


def _contrastive_diagonal(chance: random.Random) -> Call:
    x = _normal(chance.choice(SIZES), chance.choice(SIZES), dtype=chance.choice((F32, F16, BF16)))
    y = torch.randn_like(x)
    norms = [1 / t.float().norm(dim=1) for t in (x, y)]
    return Call("contrastive_diagonal", [x, y, *norms], {})


def _contrastive_statistics(chance: random.Random) -> Call:
    strip, first = _strip(chance)
    budget = chance.choice((1, 4096, 1 << 28))
    return Call("contrastive_statistics", [*strip, first, chance.random() < 0.5, budget], {})


def _contrastive_gradients(chance: random.Random) -> Call:
    strip, first = _strip(chance)
    logits = strip[4] * (strip[0] * strip[2][:, None]) @ (strip[1] * strip[3][:, None]).T
    # NaN: sums go by each row's and column's own largest logit.
    shift, kept = torch.full((1,), torch.nan), torch.empty(0)
    if chance.random() < 0.5:
        *_, shift, kept = torch.ops.clipfast.contrastive_statistics(*strip, first, True, 1 << 28)
    rest = [shift, logits.logsumexp(1), logits.logsumexp(0), kept]
    flags = chance.choice(([True, True], [True, False], [False, True]))
    budget = chance.choice((1, 4096, 1 << 28))
    return Call("contrastive_gradients", [*strip, *rest, first, *flags, budget], {})


def _contrastive_finish(chance: random.Random) -> Call:
    dtype = chance.choice((F32, F16, BF16))
    x = _normal(chance.choice(SIZES), chance.choice(SIZES), dtype=dtype)
    other, rows = torch.randn_like(x), x.shape[0]
    norms = [1 / t.float().norm(dim=1) for t in (x, other)]
    vectors = [*norms, norms[0], _normal(rows), torch.tensor([0.25])]
    return Call(
        "contrastive_finish", [_normal(*x.shape), x, other, *vectors, chance.random() < 0.7], {}
    )


def _resize_crops(chance: random.Random) -> Call:
    images, boxes = [], []
    for _ in range(chance.choice((0, 1, 3))):
        height, width = chance.choice(SIZES), chance.choice(SIZES)
        images.append(torch.randint(0, 256, (height, width, 3), dtype=torch.uint8))
        side = min(height, width) * chance.choice((0.1, 0.9, 1.0))
        place = [(length - side) * chance.random() for length in (height, width)]
        boxes.append([*place, side])
    size = chance.choice(SIZES)
    table = torch.tensor(boxes, dtype=F64).reshape(-1, 3)
    # One level, which forms may round apart, is less than what results may differ by.
    std = [50.0] * 3
    out = torch.zeros(len(images), size, size, 3)
    return Call("resize_crops_", [images, table, [0.1, 0.2, 0.3], std, out], {})


# Names of operators that write into their arguments.
_IN_PLACE = {"adamw": "adamw_", "resize_crops": "resize_crops_"}
MAKERS: dict[str, Callable[[random.Random], Call]] = {
    _IN_PLACE.get(maker.__name__.strip("_"), maker.__name__.strip("_")): maker
    for maker in (
        *(_l2_normalize, _l2_normalize_backward, _linear, _linear_backward, _bmm),
        *(_quick_gelu, _quick_gelu_backward, _batch_norm_statistics, _batch_norm_apply),
        *(_batch_norm_backward, _adamw, _adamw_grad_norm, _contrastive_prepare),
        *(_contrastive_diagonal, _contrastive_statistics, _contrastive_gradients),
        *(_contrastive_finish, _resize_crops),
    )
}


def _other_type(t: Tensor, chance: random.Random) -> Tensor:
    return t.to(chance.choice((F32, F16, BF16, F64, torch.int32, torch.bool, torch.complex64)))


def _other_size(t: Tensor, chance: random.Random) -> Tensor:
    if t.dim() == 0:
        return t[None].expand(3)
    at = chance.randrange(t.dim())
    size = max(0, t.shape[at] + chance.choice((-t.shape[at], -1, 1, 7)))
    return torch.randn([size if i == at else n for i, n in enumerate(t.shape)]).to(t.dtype)


def _spread_out(t: Tensor, chance: random.Random) -> Tensor:
    if t.dim() == 0:
        return t
    wide = t.new_zeros([*t.shape[:-1], 2 * t.shape[-1] + 1])
    view = wide[..., 1::2][..., : t.shape[-1]]
    return view.copy_(t)


def _repeated(t: Tensor, chance: random.Random) -> Tensor:
    return t[:1].expand(t.shape) if t.dim() and t.shape[0] else t


def _poisoned(t: Tensor, chance: random.Random) -> Tensor:
    t = t.clone(memory_format=torch.preserve_format)
    if t.numel() and t.dtype.is_floating_point:
        value = chance.choice((float("nan"), float("inf"), -float("inf"), 0.0, 6e4))
        t[tuple(chance.randrange(n) for n in t.shape)] = value
    return t


# What becomes of one tensor of a call.
CHANGES: dict[str, Callable[[Tensor, random.Random], Tensor]] = {
    "type": _other_type,
    "size": _other_size,
    "a dimension more": lambda t, chance: t[None],
    "a dimension less": lambda t, chance: t[0] if t.dim() and t.shape[0] else t,
    "turned": lambda t, chance: t.mT if t.dim() > 1 else t,
    "spread out": _spread_out,
    "repeated without memory": _repeated,
    "off its alignment": lambda t, chance: torch.cat([t.reshape(-1)[:1], t.reshape(-1)])[1:].view(
        t.shape
    ),
    "poisoned": _poisoned,
    "empty": lambda t, chance: t.new_empty([0] * t.dim()),
    "without values": lambda t, chance: t.to("meta"),
}
