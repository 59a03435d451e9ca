"""What becomes of small updates: weights in half precision late in the cosine.

There an update is a small part of the distance between neighbouring half-precision numbers.
Rounded to nearest, most weights stand still; rounded stochastically they move as float32 weights
do in the mean. Two problems show it: a noisy quadratic trained from the end of its warm-up to the
end of its cosine, and the demo's gradients replayed at a rate that has decayed.

A form's progress is its movement along the movement it should make:

    progress = <w - w0, d> / <d, d>
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.parts.adamw.followers import BETA1, EPS, Adam64
from benchmarks.parts.adamw.gradients import Trace
from benchmarks.parts.common.harness import Row
from benchmarks.parts.common.plots import new_figure, save_figure
from clipfast.optim.fused_adamw import FusedAdamW

# How far progress may be from that of float32 or float64, besides its standard errors. Replayed
# gradients do not answer to the weights; the quadratic's do, and the noise of rounding, a third of
# the way to the targets for bf16, enters sqrt(v) and makes steps a little shorter.
LIMIT_Z = 4.5
LIMIT_PROGRESS = {"quadratic": 0.05, "trace": 2e-3}
# A control has to lose at least this much of the progress.
LIMIT_CONTROL = 0.2


@dataclass(frozen=True)
class Form:
    """How weights are kept.

    Attributes:
        name: As in the tables.
        dtype: Of the parameter.
        weights: ``FusedAdamW``'s option.
        rounding: Likewise.
        stats_dtype: Likewise.
    """

    name: str
    dtype: torch.dtype
    weights: str
    rounding: str = "stochastic"
    stats_dtype: torch.dtype = torch.float16

    @property
    def is_control(self) -> bool:
        return self.rounding == "nearest"

    def optimizer(self, weights: list[Tensor], lr: float, beta2: float, decay: float) -> FusedAdamW:
        return FusedAdamW(
            weights,
            lr=lr,
            betas=(BETA1, beta2),
            eps=EPS,
            weight_decay=decay,
            stats_dtype=self.stats_dtype,
            weights=self.weights,
            rounding=self.rounding,
        )


FORMS = (
    Form("fp32", torch.float32, "fp32"),
    Form("bf16 and remainder", torch.bfloat16, "remainder"),
    Form("bf16, stochastic", torch.bfloat16, "stochastic"),
    Form("fp16, stochastic", torch.float16, "stochastic"),
    # Statistics of float32, so that nothing but the weights is rounded to nearest.
    Form("bf16, to nearest", torch.bfloat16, "stochastic", "nearest", torch.float32),
)


def late_phase(
    elements: int, steps: int, seed: int = 0
) -> tuple[list[Row], dict[str, list[float]]]:
    """Train a noisy quadratic with each form, the rate going from 1e-5 to 0 on a cosine.

    Weights start as bf16 normals of deviation 0.05 and are drawn to targets half the sum of all
    rates away, up or down at random; the gradient is the distance plus noise as large. The fp32
    form's own movement is the one that the others should make.

    Args:
        elements: Weights.
        steps: Of the cosine.
        seed: Of weights, targets and noise, the same for all forms.

    Returns:
        One row per form with its ``progress``, the standard error of that in ``error``, and the
        share of weights that never ``moved``; and each form's progress towards the targets by step.
    """
    generator = torch.Generator().manual_seed(seed)
    start = (0.05 * torch.randn(elements, generator=generator)).bfloat16().float()
    rates = [0.5e-5 * (1 + math.cos(math.pi * t / steps)) for t in range(steps)]
    side = torch.randint(0, 2, (elements,), generator=generator) * 2.0 - 1
    distance = 0.5 * sum(rates)
    ends, curves = {}, {}
    for form in FORMS:
        weight = start.to(form.dtype, copy=True)
        optimizer = form.optimizer([weight], rates[0], 0.98, 0.0)
        noise = torch.Generator().manual_seed(seed + 1)
        begun = weight.float().clone()
        target = begun + distance * side
        curve = []
        for rate in rates:
            optimizer.param_groups[0]["lr"] = rate
            now = optimizer.full_precision(weight).float()
            # The distance is worn away: the noise keeps its size, as that of a loss does.
            blur = distance * torch.randn(elements, generator=noise)
            weight.grad = (now - target + blur).to(form.dtype)
            optimizer.step()
            moved = optimizer.full_precision(weight).float() - begun
            curve.append(float((moved * side).mean()) / distance)
        ends[form.name], curves[form.name] = moved, curve
    truth = ends[FORMS[0].name]
    return [_row("quadratic", form, [ends[form.name]], [truth]) for form in FORMS], curves


def replay(
    trace: Trace,
    lr: float,
    decay: float,
    beta2: float,
    cycles: int,
    after_step: Callable[[], object] = lambda: None,
) -> list[Row]:
    """Move the demo's weights by its recorded gradients, at one rate, in each form.

    Args:
        trace: Weights and gradients.
        lr: The rate.
        decay: Of the weights.
        beta2: Of Adam.
        cycles: Times that the trace is gone through.
        after_step: Called after each step.

    Returns:
        One row per form, its ``progress`` along the movement of float64 Adam; see
        :func:`late_phase`.
    """
    starts = [weight.bfloat16().float() for weight in trace.weights]
    truth = [start.double() for start in starts]
    adam = Adam64([start.shape for start in starts], beta2)
    weights = [[start.to(form.dtype, copy=True) for start in starts] for form in FORMS]
    begun = [[weight.double() for weight in of_form] for of_form in weights]
    optimizers = [
        form.optimizer(of_form, lr, beta2, decay)
        for form, of_form in zip(FORMS, weights, strict=True)
    ]
    for _ in range(cycles):
        for grads in trace.gradients():
            for weight, direction in zip(truth, adam.step(grads), strict=True):
                weight.mul_(1 - lr * decay).sub_(direction, alpha=lr)
            for of_form, optimizer in zip(weights, optimizers, strict=True):
                for weight, grad in zip(of_form, grads, strict=True):
                    weight.grad = grad.to(weight.dtype)
                optimizer.step()
            after_step()
    movement = [end - start for end, start in zip(truth, starts, strict=True)]
    rows = []
    for form, of_form, optimizer, at_first in zip(FORMS, weights, optimizers, begun, strict=True):
        moved = [
            optimizer.full_precision(weight).double() - first
            for weight, first in zip(of_form, at_first, strict=True)
        ]
        rows.append({**_row("trace", form, moved, movement), "lr": lr, "cycles": cycles})
    return rows


def _row(problem: str, form: Form, moved: Sequence[Tensor], truth: Sequence[Tensor]) -> Row:
    d = torch.cat([one.flatten() for one in truth]).double()
    own = torch.cat([one.flatten() for one in moved]).double()
    square = float(d.square().sum())
    progress = float((own * d).sum()) / square
    # Of a regression through zero whose errors differ in size from weight to weight.
    error = math.sqrt(float(((own - progress * d) * d).square().sum())) / square
    row = {
        "name": form.name,
        "problem": problem,
        "is_control": form.is_control,
        "progress": progress,
        "error": error,
        "unmoved": float((own == 0).double().mean()),
        "relative_l2": float((own - d).norm() / d.norm()),
    }
    off = abs(progress - 1)
    row["passed"] = (
        off > LIMIT_CONTROL
        if form.is_control
        else off <= max(LIMIT_PROGRESS[problem], LIMIT_Z * error)
    )
    return {**row, "checked": True}


def complaints(rows: Sequence[Row]) -> list[str]:
    """Forms of ours that do not follow, and controls that do."""
    return [
        f"{row['name']}: progress {row['progress']:.4f} on the {row['problem']}"
        for row in rows
        if not row["passed"]
    ]


def table(rows: Sequence[Row]) -> str:
    """One line per form."""
    lines = [
        f"{'':12}{'':22}{'progress':>10}{'+-':>9}{'unmoved':>10}{'distance from it, relative':>28}"
    ]
    for row in rows:
        verdict = "follows" if abs(row["progress"] - 1) <= LIMIT_CONTROL else "stalls"
        verdict = f"control {verdict}" if row["is_control"] else verdict
        verdict += "" if row["passed"] else ": WRONG"
        lines.append(
            f"{row['problem']:12}{row['name']:22}{row['progress']:10.4f}{row['error']:9.4f}"
            f"{row['unmoved']:10.1%}{row['relative_l2']:28.4f}   {verdict}"
        )
    return "\n".join(lines)


def plot(curves: dict[str, list[float]], path: Path) -> Path:
    """Draw progress towards the quadratic's targets by step, one line per form.

    Args:
        curves: Of :func:`late_phase`.
        path: PNG to write.

    Returns:
        The file written.
    """
    figure = new_figure(7, 4)
    axes = figure.add_subplot()
    for number, (name, curve) in enumerate(curves.items()):
        style = "--" if number % 2 else "-"
        axes.plot(range(1, len(curve) + 1), curve, style, label=name, linewidth=1.8)
    axes.set_xlabel("step of the cosine, its rate going from 1e-5 to 0")
    axes.set_ylabel("share of the way to the targets")
    axes.set_title("Weights late in training: a noisy quadratic", fontsize=10)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    return save_figure(figure, path)
