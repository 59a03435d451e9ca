"""Compares the loss and the gradients of one step before it is timed.

The truth is OpenCLIP's own model in float32, its matrix products not rounded. A contender is right
where its error is not much larger than the yardstick: plain OpenCLIP's in the precision that is
timed; and where that is float32 itself, what becomes of its gradients with the images in another
memory layout, whose convolutions add the same terms in another order. (A batch norm and a ReLU over
a small batch make much of that: up to a hundredth.)
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from benchmarks.parts.common import peers
from benchmarks.parts.common.harness import CheckFailed
from benchmarks.parts.step.contenders import Contender, Field

# A logit is a product of features, rounded to the precision, times the scale of 14 that training
# starts with. (One step's error of a single number, as the loss, says little about the next one's.)
FLOOR = {"fp32": 1e-4, "tf32": 14 * 2.0**-11, "amp_bf16": 14 * 2.0**-9}
# The gradients of a whole tower are many numbers: their yardstick says enough.
GRADIENTS_FLOOR = 1e-4
SCALARS = ("error_loss", "error_scale_grad")
SLACK = 2.0
TOWERS = ("image", "text", "scale")

Errors = dict[str, float]


@dataclass(frozen=True)
class Truth:
    """One step's loss and gradients.

    Attributes:
        loss: Of the batch.
        gradients: By parameter, under the names of the paper's released code.
        yardstick: The errors that rounding explains.
        floor: An error of the loss or the log-scale that is no mistake whatever the yardstick.
    """

    loss: Tensor
    gradients: dict[str, Tensor]
    yardstick: Errors
    floor: float


def compute_truth(field: Field) -> Truth:
    """The step in float32, and the errors that the case's precision explains."""
    plain = field.contender("openclip")
    exact = replace(plain, autocast=contextlib.nullcontext)
    precision = field.case.precision
    is_exact = precision == "fp32"
    with exact_products():
        truth = Truth(*_run(exact), yardstick={}, floor=FLOOR[precision])
    rounded = field.contender("openclip-channels-last") if is_exact else plain
    return replace(truth, yardstick=measure_errors(truth, *_run(rounded)))


def check(contender: Contender, truth: Truth) -> Errors:
    """Run one forward and backward and compare; gradients are dropped afterwards.

    Returns:
        The relative errors of the loss, and of each tower's gradients in the L2 norm.

    Raises:
        CheckFailed: a parameter has no gradient, or an error is too large.
    """
    loss, gradients = _run(contender)
    if missing := truth.gradients.keys() ^ gradients.keys():
        raise CheckFailed(f"{len(missing)} gradients differ: {min(missing)}")
    errors = measure_errors(truth, loss, gradients)
    limits = {
        key: (truth.floor if key in SCALARS else GRADIENTS_FLOOR) + SLACK * truth.yardstick[key]
        for key in errors
    }
    worst = {key: value for key, value in errors.items() if not value <= limits[key]}
    if worst:
        told = ", ".join(f"{k} {v:.1e} (at most {limits[k]:.1e})" for k, v in worst.items())
        raise CheckFailed(told)
    return errors


def measure_errors(truth: Truth, loss: Tensor, gradients: dict[str, Tensor]) -> Errors:
    """Relative errors of the loss, and of the gradients of either tower and of the log-scale."""
    errors = {"error_loss": ((loss - truth.loss).abs() / truth.loss.abs()).item()}
    for tower in TOWERS:
        errors[f"error_{tower}_grad"] = relative_error(
            [
                (gradients[name], expected)
                for name, expected in truth.gradients.items()
                if tower_of(name) == tower
            ]
        )
    return errors


def relative_error(pairs: list[tuple[Tensor, Tensor]]) -> float:
    """The L2 norm of all differences by that of all expected values.

    Args:
        pairs: What was computed, and what is expected of it.
    """
    squares = torch.zeros(2, dtype=torch.float64)
    for actual, expected in pairs:
        difference = actual.reshape(expected.shape).float() - expected.float()
        for i, x in enumerate((difference, expected)):
            # Squares of float32 values may be below its range; their norm is not.
            squares[i] += x.float().norm().double().cpu() ** 2
    return (squares[0] / squares[1]).sqrt().item()


def tower_of(parameter: str) -> str:
    """``image``, ``text`` or ``scale``."""
    if parameter.startswith("logit"):
        return "scale"
    return "image" if parameter.startswith("visual.") else "text"


def _run(contender: Contender) -> tuple[Tensor, dict[str, Tensor]]:
    # What a failed run has left would be added to.
    contender.optimizer.zero_grad(set_to_none=True)
    loss = contender.forward_backward()
    gradients = {
        peers.our_name(name): parameter.grad
        for name, parameter in contender.model.named_parameters()
        if parameter.grad is not None
    }
    contender.optimizer.zero_grad(set_to_none=True)
    return loss, gradients


@contextlib.contextmanager
def exact_products() -> Iterator[None]:
    """Float32 products and convolutions without TF32."""
    backends = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [backend.allow_tf32 for backend in backends]
    for backend in backends:
        backend.allow_tf32 = False
    try:
        yield
    finally:
        for backend, value in zip(backends, before, strict=True):
            backend.allow_tf32 = value
