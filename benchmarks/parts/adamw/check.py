"""Whether a contender of ``adamw.py`` computes AdamW: three steps of a small problem.

Against float64: the relative L2 error of the weights' movement. Half-precision weights, which
cannot hold such movement, are to be within three units in the last place; rounded stochastically
they are also to be right in the mean. Ours are moreover compared with ``plain.step`` bit by
bit: weights, statistics, scales and remainders.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from benchmarks.parts.adamw.contenders import BETAS, EPS, LR, WEIGHT_DECAY, Contender, make
from benchmarks.parts.common.harness import CheckFailed, Row
from clipfast.ops.adamw import BLOCK, plain
from clipfast.optim.fused_adamw import FusedAdamW

STEPS = 3
_SHAPES = ((3, 1000), (257,), (64, 64), (1,), (7, 5, 3, 3), (40001,))
# Of a mean of weights' errors, in its standard errors.
_LIMIT_Z = 5.0


def check(contender: Contender, device: torch.device) -> Row:
    """Run the small problem.

    Args:
        contender: Whom to check.
        device: Where.

    Returns:
        ``error``, of the movement, or ``error_ulp``, the largest of half-precision weights; and for
        ours ``equals_reference``.

    Raises:
        CheckFailed: It is not AdamW within its tolerance, or not the reference's bits.
        NotMeasured: It does not run here.
    """
    generator = torch.Generator().manual_seed(0)

    def draw(scale: float) -> list[Tensor]:
        return [
            (scale * math.exp(2 * torch.randn((), generator=generator)))
            * torch.randn(shape, generator=generator)
            for shape in _SHAPES
        ]

    starts = [0.05 * torch.randn(shape, generator=generator) for shape in _SHAPES]
    weights = [start.to(device, contender.dtype).requires_grad_() for start in starts]
    grads = [[g.to(device, contender.dtype) for g in draw(1e-4)] for _ in range(STEPS)]
    before = [weight.detach().clone() for weight in weights]
    optimizer = make(contender, weights)
    for of_step in grads:
        for weight, grad in zip(weights, of_step, strict=True):
            weight.grad = grad.clone()
        optimizer.step()
    found: Row = {}
    if isinstance(optimizer, FusedAdamW):
        _check_bits(optimizer, before, weights, grads)
        found["equals_reference"] = True
        ends = [optimizer.full_precision(weight) for weight in weights]
    else:
        ends = [weight.detach() for weight in weights]
    truth = _in_float64(before, grads)
    return {**found, **_compare(contender, before, ends, truth)}


def _in_float64(starts: list[Tensor], grads: list[list[Tensor]]) -> list[Tensor]:
    weights = [start.double() for start in starts]
    m = [torch.zeros_like(weight) for weight in weights]
    v = [torch.zeros_like(weight) for weight in weights]
    for step, of_step in enumerate(grads, 1):
        for i, grad in enumerate(of_step):
            m[i].lerp_(grad.double(), 1 - BETAS[0])
            v[i].lerp_(grad.double().square(), 1 - BETAS[1])
            m_hat, v_hat = m[i] / (1 - BETAS[0] ** step), v[i] / (1 - BETAS[1] ** step)
            weights[i].mul_(1 - LR * WEIGHT_DECAY).sub_(LR * m_hat / (v_hat.sqrt() + EPS))
    return weights


def _compare(
    contender: Contender, starts: list[Tensor], ends: list[Tensor], truth: list[Tensor]
) -> Row:
    w0, w, w64 = (
        torch.cat([one.detach().double().flatten() for one in of]) for of in (starts, ends, truth)
    )
    if contender.tolerance is not None:
        error = float((w - w64).norm() / (w64 - w0).norm())
        _require(error <= contender.tolerance, f"error {error:.1e} > {contender.tolerance:.0e}")
        return {"error": error}
    # A weight that passes near zero was rounded where it was larger. It moves by at most LR.
    reach = torch.maximum(w64.abs(), w0.abs()) + STEPS * LR
    ulp = torch.exp2(reach.log2().floor()) * torch.finfo(contender.dtype).eps
    off = (w - w64) / ulp
    largest = float(off.abs().max())
    _require(largest <= STEPS, f"a weight is {largest:.2f} ulp off after {STEPS} steps")
    if contender.is_ours:
        z = float(off.mean() / (off.std() / math.sqrt(off.numel())))
        _require(abs(z) <= _LIMIT_Z, f"weights are {float(off.mean()):.3f} ulp off in the mean")
    return {"error_ulp": largest}


def _check_bits(
    optimizer: FusedAdamW, starts: list[Tensor], weights: list[Tensor], grads: list[list[Tensor]]
) -> None:
    states = [optimizer.state[weight] for weight in weights]
    roots = "exp_avg_sq" if "exp_avg_sq" in states[0] else "exp_avg_sqrt"
    keys = [key for key in ("exp_avg", roots, "exponents", "remainder") if key in states[0]]
    own = [start.clone() for start in starts]
    kept = {key: [torch.zeros_like(state[key]) for state in states] for key in keys}
    firsts, next_element = [], 0
    for weight in own:
        firsts.append(next_element)
        next_element += -(-weight.numel() // BLOCK) * BLOCK
    device = own[0].device
    for step, of_step in enumerate(grads, 1):
        plain.step(
            own,
            of_step,
            kept["exp_avg"],
            kept[roots],
            kept.get("exponents", []),
            kept.get("remainder", []),
            [torch.tensor(float(step), device=device) for _ in own],
            firsts,
            torch.tensor([1.0, 0.0], device=device),
            lr=LR,
            beta1=BETAS[0],
            beta2=BETAS[1],
            eps=EPS,
            weight_decay=WEIGHT_DECAY,
            maximum=math.inf,
            seed=0,
            stochastic=True,
            grid="",
        )
    pairs = [("weight", weight.detach(), mine) for weight, mine in zip(weights, own, strict=True)]
    for key in keys:
        pairs += [(key, s[key], mine) for s, mine in zip(states, kept[key], strict=True)]
    for name, got, expected in pairs:
        _require(torch.equal(got, expected), f"{name} is not the reference's, bit for bit")


def _require(is_right: bool, told: str) -> None:
    if not is_right:
        raise CheckFailed(told)
