"""One step of AdamW and the norm of its gradients in plain torch: the fallback, and the truth whose
bits every other form of the step gives.

Each sum of csrc/adamw/element.h is one fused multiply-add and everything else one IEEE operation;
here they are fp64 operations, rounded once.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple

import torch
from torch import Tensor

from clipfast.ops.adamw.formats import (
    BLOCK,
    NEAREST,
    decode_flat,
    encode_flat,
    follow,
    in_memory_order,
    join_master,
    round_to,
    split_master,
)
from clipfast.ops.adamw.random_bits import FIRST_MOMENT, SECOND_MOMENT, WEIGHT, philox

GRIDS = {"bf16": torch.bfloat16, "fp16": torch.float16}
Piece = tuple[int, int]


def fused_multiply_add(a: Tensor | float, b: Tensor, c: Tensor | float) -> Tensor:
    """fp32 a b + c, rounded once.

    fp64 holds the product exactly. Its sum with c is rounded to odd, which a later rounding to
    fewer bits cannot tell from the exact sum (Boldo and Melquiond 2008).

    Args:
        a: fp32, or a number that fp32 holds.
        b: fp32.
        c: as a.

    Returns:
        fp32.
    """
    product = b.double() * a
    addend = torch.as_tensor(c, dtype=torch.float64, device=b.device)
    total = product + addend
    back = total - product
    error = (product - (total - back)) + (addend - back)
    bits = total.view(torch.int64)
    toward = torch.where((error > 0) == (total > 0), 1, -1)
    adjust = (error != 0) & error.isfinite() & (bits & 1 == 0)
    return torch.where(adjust, bits + toward, bits).view(torch.float64).float()


class Coefficients(NamedTuple):
    """What one step of one tensor multiplies with, fp32 values as Python floats."""

    beta1: float
    rest1: float
    beta2: float
    rest2: float
    decay: float
    step_size: float
    inverse_correction: float
    eps: float
    maximum: float


def _number_of(step: Tensor) -> int:
    """The number of an update, from 1; one that is none would not come to an end in `power`."""
    number = step.item()
    if not 1 <= number < 2**32:
        raise ValueError(f"AdamW: expected steps from 1 on that 32 bits count, got {number}")
    return int(number)


def power(base: float, exponent: int) -> float:
    """base^exponent by squaring, in products alone."""
    result = 1.0
    while exponent:
        if exponent & 1:
            result *= base
        base *= base
        exponent >>= 1
    return result


def coefficients(
    step: int,
    *,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    maximum: float,
) -> Coefficients:
    """The coefficients of update number `step`, from 1; arguments as of the operator."""
    exact = (
        *(beta1, 1.0 - beta1, beta2, 1.0 - beta2),
        float(1 - Fraction(lr) * Fraction(weight_decay)),
        lr / (1.0 - power(beta1, step)),
        1.0 / math.sqrt(1.0 - power(beta2, step)),
        *(eps, maximum),
    )
    return Coefficients(*torch.tensor(exact, dtype=torch.float64).float().tolist())


def update(
    weight: Tensor, grad: Tensor, m: Tensor, v: Tensor, c: Coefficients
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """One step of fp32 vectors.

        m = beta1 m + (1 - beta1) g        v = beta2 v + (1 - beta2) g^2
        weight = min(decay weight - step_size m / (sqrt(v) inverse_correction + eps), maximum)

    Args:
        weight: [n] fp32, and the three below.
        grad: gradient.
        m: first moment.
        v: second moment.
        c: coefficients.

    Returns:
        weight, m, v and the root of v.

    Source: Loshchilov and Hutter 2019, "Decoupled Weight Decay Regularization".
    """
    m = fused_multiply_add(c.beta1, m, grad * c.rest1)
    v = fused_multiply_add(c.beta2, v, grad * grad * c.rest2)
    root = v.double().sqrt().float()
    denominator = fused_multiply_add(c.inverse_correction, root, c.eps)
    direction = (m.double() / denominator.double()).float()
    weight = fused_multiply_add(-c.step_size, direction, weight * c.decay)
    return torch.where(weight > c.maximum, c.maximum, weight), m, v, root


def _load_weight(param: Tensor, master: Tensor | None) -> Tensor:
    if master is None:
        return param.float()
    return follow(param, master) if master.dtype == torch.float32 else join_master(param, master)


def _store_weight(
    weight: Tensor, param: Tensor, master: Tensor | None, grid: str, random: Tensor | int
) -> None:
    if master is not None and master.dtype == torch.float32:
        master.copy_(weight)
        param.copy_(weight)
    elif master is not None:
        for part, value in zip((param, master), split_master(weight), strict=True):
            part.copy_(value)
    elif param.dtype != torch.float32 or grid:
        param.copy_(round_to(weight, GRIDS.get(grid, param.dtype), random))
    else:
        param.copy_(weight)


@torch.no_grad()
def step(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    exp_avgs: Sequence[Tensor],
    exp_avg_sqs: Sequence[Tensor],
    exponents: Sequence[Tensor],
    masters: Sequence[Tensor],
    steps: Sequence[Tensor],
    first_elements: Sequence[int],
    control: Tensor,
    *,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    maximum: float,
    seed: int,
    stochastic: bool,
    grid: str,
    starts: Sequence[int] = (),
) -> None:
    """torch.ops.clipfast.adamw_ in plain torch, bit for bit, slower. Reads `control` and `steps` on
    the host.

    Args:
        params: fp32, bf16 or fp16, their elements filling their memory; updated in place.
        grads: of any of these types, shapes and strides of params.
        exp_avgs: first moments, all of one of these types; likewise, in place.
        exp_avg_sqs: second moments in fp32, their roots in half precision; likewise, in place.
        exponents: for fp16 statistics int8 [2, ceil(numel / 256)] per parameter, of exp_avg and of
            exp_avg_sq; else empty; in place.
        masters: empty, or for each half parameter its fp32 master, or int16 (`split_master`); in
            place. Without it a half parameter is rounded stochastically.
        steps: fp32 [] per parameter: the number of this update, from 1.
        first_elements: multiples of 256, the index of each piece's first element among all; a
            tensor is one piece where there are no starts.
        control: fp32 [2]: what gradients are multiplied with; not 0: change nothing.
        lr: learning rate.
        beta1: decay of the first moment.
        beta2: decay of the second moment.
        eps: added to the root of the second moment.
        weight_decay: decoupled, times lr.
        maximum: bound of the weights from above, or infinity.
        seed: of the random numbers.
        stochastic: False: round to nearest instead, to show what that does.
        grid: "bf16" or "fp16": round fp32 params stochastically to values of that type; else "".
        starts: for tensors of several pieces, where each piece begins in its tensor, in the order
            of memory: multiples of 256 that rise, and 0 where the next tensor begins. Only the
            index of an element depends on it.

    Raises:
        TypeError: a gradient is sparse.
        ValueError: a number of `steps` is none that 32 bits count from 1, or the pieces are not
            those of the tensors; nothing has changed.
    """
    pieces = _pieces([tensor.numel() for tensor in params], starts, first_elements)
    for grad in grads:
        if grad.layout != torch.strided:
            raise TypeError(f"AdamW: expected dense gradients, got {grad.layout}")
    if control[1].item() != 0:
        return
    hyper = {
        **{"lr": lr, "beta1": beta1, "beta2": beta2, "eps": eps},
        **{"weight_decay": weight_decay, "maximum": maximum},
    }
    numbers = {i: _number_of(steps[i]) for i, tensor in enumerate(params) if tensor.numel()}
    for i, t in numbers.items():
        tensor = params[i]
        param, grad, m, v = map(in_memory_order, (tensor, grads[i], exp_avgs[i], exp_avg_sqs[i]))
        master = in_memory_order(masters[i]) if masters else None
        m_exponents, v_exponents = exponents[i] if exponents else (None, None)

        def random(
            purpose: int, param: Tensor = param, t: int = t, own: list[Piece] = pieces[i]
        ) -> Tensor | int:
            if not stochastic:
                return NEAREST
            bits = [philox(first, n, t, purpose, seed, param.device) for first, n in own]
            return torch.cat(bits)

        old_v, holds_root = decode_flat(v, v_exponents), v.dtype != torch.float32
        weight, new_m, new_v, root = update(
            _load_weight(param, master),
            grad.float() * control[0],
            decode_flat(m, m_exponents),
            old_v * old_v if holds_root else old_v,
            coefficients(t, **hyper),
        )
        for code, scale, value, purpose in (
            (m, m_exponents, new_m, FIRST_MOMENT),
            (v, v_exponents, root if holds_root else new_v, SECOND_MOMENT),
        ):
            made, made_scale = encode_flat(value, code.dtype, random(purpose) if holds_root else 0)
            code.copy_(made)
            if scale is not None:
                scale.copy_(made_scale)
        _store_weight(weight, param, master, grid, random(WEIGHT))


def _pieces(
    sizes: Sequence[int], starts: Sequence[int], first_elements: Sequence[int]
) -> list[list[Piece]]:
    """The pieces of each tensor: index of the first element, and number of elements."""
    starts = starts or [0] * len(sizes)
    begins = [number for number, start in enumerate(starts) if start == 0]
    if len(starts) != len(first_elements) or len(begins) != len(sizes) or begins[:1] > [0]:
        raise ValueError(
            f"AdamW: expected first_elements and starts of one length, with a 0 for each of "
            f"{len(sizes)} tensors; got {len(first_elements)}, {len(starts)} and {len(begins)}"
        )
    pieces = []
    for size, begin, end in zip(sizes, begins, [*begins[1:], len(starts)], strict=True):
        ends = [*starts[begin + 1 : end], size]
        if any(b % BLOCK or not a < b < size for a, b in itertools.pairwise([*starts[begin:end]])):
            raise ValueError(
                f"AdamW: expected starts in a tensor of {size} elements that rise in multiples of "
                f"{BLOCK}, got {[*starts[begin:end]]}"
            )
        counts = [b - a for a, b in zip(starts[begin:end], ends, strict=True)]
        pieces.append([*zip(first_elements[begin:end], counts, strict=True)])
    return pieces


def grad_norm(grads: Sequence[Tensor]) -> Tensor:
    """torch.ops.clipfast.adamw_grad_norm in plain torch: the 2-norm over all elements of all
    tensors, fp32 [], summed in fp64; not finite where an element is not."""
    sums = [torch.linalg.vector_norm(grad, dtype=torch.float64) for grad in grads]
    return torch.linalg.vector_norm(torch.stack(sums)).float()
