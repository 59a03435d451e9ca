"""AdamW with statistics and weights in half precision: the operators, their formats, and the plain
form that serves as the truth in tests.

    torch.ops.clipfast.adamw_            one step of a list of tensors, in place
    torch.ops.clipfast.adamw_grad_norm   2-norm of a list of gradients

The device of the tensors picks the implementation:

    CPU    csrc/adamw (vectorised, threaded); `reference_step` where clipfast._C is absent
    CUDA   csrc/adamw (one launch for many tensors); else `reference_step`
    other  `reference_step`

Every implementation of the step gives the same bits; norms add in orders of their own, in fp64, and
may differ in the last bit of fp32. For the step, each sum of csrc/adamw/element.h is one fused
multiply-add and everything else one IEEE operation; here they are fp64 operations, rounded once.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple

import torch
from torch import Tensor

from clipfast.ops.registry import Compiled, Operator, declare

BLOCK = 256
DRAW = 8
# Of Philox: csrc/adamw/element.h says why so few.
ROUNDS = 7
NEAREST = 0x8000
FIRST_MOMENT, SECOND_MOMENT, WEIGHT = range(3)
# One draw serves an element's three roundings: csrc/adamw/element.h says why and which.
MULTIPLIERS = (1, 0x1663, 0x2F8F)
GRIDS = {"bf16": torch.bfloat16, "fp16": torch.float16}
WORD = 0xFFFFFFFF
MAGNITUDE = 0x7FFFFFFF
INFINITY = 0x7F800000


def philox(
    first_element: int, numel: int, step: int, purpose: int, seed: int, device: torch.device
) -> Tensor:
    """The 16 random bits of each element: Philox4x32-7 keyed by the seed, then permuted.

    Args:
        first_element: index of element 0 among all of the optimizer's, a multiple of 8.
        numel: elements.
        step: t.
        purpose: FIRST_MOMENT, SECOND_MOMENT or WEIGHT.
        seed: any int64.
        device: of the result.

    Returns:
        [numel] int64 below 2^16.

    Source: Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3".
    """
    first_draw = first_element // DRAW
    draw = torch.arange(first_draw, first_draw + -(-numel // DRAW), device=device)
    c0, c1 = draw & WORD, draw >> 32
    c2, c3 = torch.full_like(draw, step & WORD), torch.zeros_like(draw)
    k0, k1 = seed & WORD, (seed >> 32) & WORD
    for _ in range(ROUNDS):
        p0, p1 = 0xD2511F53 * c0, 0xCD9E8D57 * c2  # modulo 2^64, in two's complement
        c0, c2 = (p1 >> 32 & WORD) ^ c1 ^ k0, (p0 >> 32 & WORD) ^ c3 ^ k1
        c1, c3 = p1 & WORD, p0 & WORD
        k0, k1 = (k0 + 0x9E3779B9) & WORD, (k1 + 0xBB67AE85) & WORD
    words = torch.stack([c0, c1, c2, c3], dim=1)
    bits = torch.stack([words & 0xFFFF, words >> 16], dim=2).reshape(-1)[:numel]
    return bits * MULTIPLIERS[purpose] & 0xFFFF


def bits_of(x: Tensor) -> Tensor:
    """The bits of fp32 numbers, as int64."""
    return x.view(torch.int32).long() & WORD


def float_of(bits: Tensor) -> Tensor:
    """The fp32 numbers of these bits."""
    return bits.to(torch.int32).view(torch.float32)


def round_to_half(x: Tensor, random: Tensor | int) -> Tensor:
    """fp16, magnitudes rounded up with the probability of the fraction that would be lost.

    Args:
        x: fp32.
        random: 16 random bits an element, or NEAREST.

    Returns:
        fp16 of x's shape. Finite numbers stay finite: at most 65504.
    """
    bits = bits_of(x)
    magnitude = bits & MAGNITUDE
    normal = ((magnitude + (random >> 3)) >> 13) - (112 << 10)
    units = (float_of(magnitude).double().clamp(max=1.0) * 2.0**40).nan_to_num(0.0).long()
    half = torch.where(magnitude >= 0x38800000, normal.clamp(max=0x7BFF), (units + random) >> 16)
    half = torch.where(magnitude == INFINITY, 0x7C00, half)
    half = torch.where(magnitude > INFINITY, 0x7E00, half)
    return (half | (bits >> 16 & 0x8000)).to(torch.int16).view(torch.float16)


def round_to_bfloat16(x: Tensor, random: Tensor | int) -> Tensor:
    """bf16, as `round_to_half` rounds to fp16."""
    bits = bits_of(x)
    magnitude = bits & MAGNITUDE
    rounded = ((magnitude + random) >> 16).clamp(max=0x7F7F)
    rounded = torch.where(magnitude == INFINITY, 0x7F80, rounded) | (bits >> 16 & 0x8000)
    rounded = torch.where(magnitude > INFINITY, 0x7FC0, rounded)
    return rounded.to(torch.int16).view(torch.bfloat16)


def round_to(x: Tensor, dtype: torch.dtype, random: Tensor | int) -> Tensor:
    """x in fp16 or bf16, with the given random bits."""
    return (round_to_half if dtype == torch.float16 else round_to_bfloat16)(x, random)


def split_master(master: Tensor) -> tuple[Tensor, Tensor]:
    """The nearest bf16 of fp32 weights, and the 16 bits that give them back.

    Args:
        master: fp32, any shape.

    Returns:
        bf16 and int16, shape of master.
    """
    bits = bits_of(master)
    is_nan = (bits & MAGNITUDE) > INFINITY
    high = torch.where(is_nan, 0x7FC0, (bits + 0x8000) >> 16)
    low = torch.where(is_nan, 0, bits)
    return high.to(torch.int16).view(torch.bfloat16), low.to(torch.int16)


def join_master(weight: Tensor, remainder: Tensor) -> Tensor:
    """The fp32 weights that `split_master` took apart.

    Args:
        weight: bf16.
        remainder: int16, shape of weight.

    Returns:
        fp32.
    """
    return float_of((weight.view(torch.int16).long() << 16) + remainder.long())


def in_memory_order(t: Tensor) -> Tensor:
    """[numel] view of a tensor whose elements fill its memory, in the order that they lie there."""
    return t.as_strided((t.numel(),), (1,))


def spread(exponents: Tensor, numel: int) -> Tensor:
    """Each element's exponent, int64 [numel], from its block's."""
    return exponents.long().repeat_interleave(BLOCK)[:numel]


def _encode(flat: Tensor, dtype: torch.dtype, random: Tensor | int) -> tuple[Tensor, Tensor | None]:
    if dtype == torch.float32:
        return flat.clone(), None
    if dtype == torch.bfloat16:
        return round_to_bfloat16(flat, random), None
    magnitude = torch.nn.functional.pad(bits_of(flat) & MAGNITUDE, (0, -len(flat) % BLOCK))
    exponents = ((magnitude.view(-1, BLOCK).amax(1) >> 23) - 127).clamp(-112, 127)
    scale = float_of((141 - spread(exponents, len(flat))) << 23)
    return round_to_half(flat * scale, random), exponents.to(torch.int8)


def _decode(flat: Tensor, exponents: Tensor | None) -> Tensor:
    if exponents is None:
        return flat.float()
    return flat.float() * float_of((spread(exponents, len(flat)) + 113) << 23)


def encode(value: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
    """Statistics as the optimizer keeps them, rounded to nearest.

    In fp16 each block of 256 elements, in the order of memory, shares a power of two: the code is
    value * 2^(14 - e), e the exponent of the block's largest magnitude.

    Args:
        value: fp32, its elements filling its memory. Of the second moment, the root (but for fp32).
        dtype: fp16, bf16 or fp32.

    Returns:
        Codes of value's shape and strides; and, for fp16, exponents int8 [ceil(numel / 256)].

    Raises:
        TypeError: another dtype.
    """
    if dtype not in (torch.float16, torch.bfloat16, torch.float32):
        raise TypeError(f"expected fp16, bf16 or fp32 statistics, got {dtype}")
    value = value.detach().float()
    code = torch.empty_like(value, dtype=dtype)
    if value.numel() == 0:
        empty = torch.empty(0, dtype=torch.int8, device=value.device)
        return code, empty if dtype == torch.float16 else None
    flat, exponents = _encode(in_memory_order(value), dtype, NEAREST)
    in_memory_order(code).copy_(flat)
    return code, exponents


def decode(code: Tensor, exponents: Tensor | None) -> Tensor:
    """What `encode` made of a value, or a step of the optimizer.

    Args:
        code: fp16, bf16 or fp32, its elements filling its memory.
        exponents: int8 [ceil(numel / 256)] for fp16, else None.

    Returns:
        fp32 of code's shape and strides.
    """
    value = torch.empty_like(code, dtype=torch.float32)
    if code.numel():
        in_memory_order(value).copy_(_decode(in_memory_order(code), exponents))
    return value


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
    step: int, *, lr: float, beta1: float, beta2: float, eps: float, weight_decay: float, maximum
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
    return master if master.dtype == torch.float32 else join_master(param, master)


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
def reference_step(
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
) -> None:
    """torch.ops.clipfast.adamw_ in plain torch, bit for bit, slower. Reads `control` and `steps` on
    the host.

    Args:
        params: fp32, bf16 or fp16, their elements filling their memory; updated in place.
        grads: of any of these types, shapes and strides of params.
        exp_avgs: first moments, all of one of these types; likewise, in place.
        exp_avg_sqs: second moments in fp32, their roots in half precision; likewise, in place.
        exponents: for fp16 statistics int8 [2, ceil(numel / 256)] a parameter, of exp_avg and of
            exp_avg_sq; else empty; in place.
        masters: empty, or for each half parameter its fp32 master, or int16 (`split_master`); in
            place. Without it a half parameter is rounded stochastically.
        steps: fp32 [] a parameter: the number of this update, from 1.
        first_elements: multiples of 256, the index of each tensor's first element among all.
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

    Raises:
        TypeError: a gradient is sparse.
    """
    for grad in grads:
        if grad.layout != torch.strided:
            raise TypeError(f"AdamW: expected dense gradients, got {grad.layout}")
    if control[1].item() != 0:
        return
    hyper = {
        **{"lr": lr, "beta1": beta1, "beta2": beta2, "eps": eps},
        **{"weight_decay": weight_decay, "maximum": maximum},
    }
    for i, tensor in enumerate(params):
        if tensor.numel() == 0:
            continue
        t = int(steps[i].item())
        param, grad, m, v = map(in_memory_order, (tensor, grads[i], exp_avgs[i], exp_avg_sqs[i]))
        master = in_memory_order(masters[i]) if masters else None
        m_exponents, v_exponents = exponents[i] if exponents else (None, None)

        def random(purpose: int, param=param, t=t, first=first_elements[i]) -> Tensor | int:
            if not stochastic:
                return NEAREST
            return philox(first, param.numel(), t, purpose, seed, param.device)

        old_v, holds_root = _decode(v, v_exponents), v.dtype != torch.float32
        weight, new_m, new_v, root = update(
            _load_weight(param, master),
            grad.float() * control[0],
            _decode(m, m_exponents),
            old_v * old_v if holds_root else old_v,
            coefficients(t, **hyper),
        )
        for code, scale, value, purpose in (
            (m, m_exponents, new_m, FIRST_MOMENT),
            (v, v_exponents, root if holds_root else new_v, SECOND_MOMENT),
        ):
            made, made_scale = _encode(value, code.dtype, random(purpose) if holds_root else 0)
            code.copy_(made)
            if scale is not None:
                scale.copy_(made_scale)
        _store_weight(weight, param, master, grid, random(WEIGHT))


def reference_grad_norm(grads: Sequence[Tensor]) -> Tensor:
    """torch.ops.clipfast.adamw_grad_norm in plain torch: the 2-norm over all elements of all
    tensors, fp32 [], summed in fp64; not finite where an element is not."""
    sums = [torch.linalg.vector_norm(grad, dtype=torch.float64) for grad in grads]
    return torch.linalg.vector_norm(torch.stack(sums)).float()


def _plain_step(*args, **kwargs) -> None:
    (params, *_), control = args, args[8]
    if control.is_cuda and params:
        warnings.warn(
            "clipfast's AdamW runs in plain torch on this GPU, many times slower: the compiled "
            "CUDA operators are absent. Remedy: build them with nvcc on PATH, "
            "`pip install -e . --no-build-isolation`.",
            RuntimeWarning,
            stacklevel=2,
        )
    reference_step(*args, **kwargs)


def _fake_step(*args, **kwargs) -> None:
    return None


def _fake_grad_norm(grads: Sequence[Tensor]) -> Tensor:
    return grads[0].new_empty((), dtype=torch.float32)


declare(
    Operator(
        name="adamw_",
        schema=(
            "(Tensor(a!)[] params, Tensor[] grads, Tensor(b!)[] exp_avgs, "
            "Tensor(c!)[] exp_avg_sqs, Tensor(d!)[] exponents, Tensor(e!)[] masters, "
            "Tensor[] steps, int[] first_elements, Tensor control, *, float lr, float beta1, "
            "float beta2, float eps, float weight_decay, float maximum, int seed, "
            "bool stochastic, str grid) -> ()"
        ),
        plain=_plain_step,
        fake=_fake_step,
        forms=(Compiled("cpu"), Compiled("cuda")),
    )
)
declare(
    Operator(
        name="adamw_grad_norm",
        schema="(Tensor[] grads) -> Tensor",
        plain=reference_grad_norm,
        fake=_fake_grad_norm,
        forms=(Compiled("cpu"), Compiled("cuda")),
    )
)
