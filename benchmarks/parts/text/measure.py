"""Measures the text towers on one batch of captions: check, time, memory."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from benchmarks.parts.common import peers
from benchmarks.parts.common.captions import Captions
from benchmarks.parts.common.contest import Absence, reason_of
from benchmarks.parts.common.harness import CheckFailed, Row, measure_together
from benchmarks.parts.step.check import exact_products, relative_error, tower_of
from benchmarks.parts.step.contenders import Case
from benchmarks.parts.text.contenders import OURS, Tower

# What rounding explains: a little, and twice the error of OpenCLIP's own in the same precision.
FLOOR, SLACK = 2e-5, 2.0


def compare(
    tower: Tower, case: Case, captions: Captions, cotangent: Tensor, truth: tuple
) -> dict[str, float]:
    """Relative errors of the features and of all gradients together, in the L2 norm."""
    features = tower.run(case, captions, cotangent)
    gradients = _gradients(tower.model)
    if gradients.keys() != truth[1].keys():
        raise CheckFailed(f"gradients of {gradients.keys() ^ truth[1].keys()}")
    return {
        "error_features": relative_error([(features, truth[0])]),
        "error_gradients": relative_error(
            [(gradients[name], value) for name, value in truth[1].items()]
        ),
    }


def _gradients(model: nn.Module) -> dict[str, Tensor]:
    return {
        name: parameter.grad.clone()
        for name, parameter in model.named_parameters()
        if parameter.grad is not None and tower_of(name) == "text"
    }


def measure_case(
    case: Case,
    captions: Captions,
    reference: Tower,
    towers: list[Tower],
    runs: int,
    tick: Callable[[], None] = lambda: None,
) -> tuple[list[Row], list[Absence]]:
    """Check all towers on these captions, then time those that pass.

    Args:
        case: The model, the batch and the precision.
        captions: What is encoded.
        reference: What the towers are compared with.
        towers: Whom to time.
        runs: Timed runs of each.
        tick: Called before each check and after each run.

    Returns:
        One row per tower that passed, and the towers without one.
    """
    peers.set_products(case.precision)
    exact = Case(case.model, case.batch, "fp32", case.device)
    cotangent = torch.randn(
        case.batch,
        reference.model.text_projection.shape[1],
        generator=torch.Generator(case.device).manual_seed(1),
        device=case.device,
    )
    with exact_products():
        features = reference.run(exact, captions, cotangent)
    truth = (features, _gradients(reference.model))
    limits = compare(reference, case, captions, cotangent, truth)
    passed, errors, absent = [], {}, []
    for tower in towers:
        tick()
        try:
            found = compare(tower, case, captions, cotangent, truth)
            if worst := {k: v for k, v in found.items() if not v <= FLOOR + SLACK * limits[k]}:
                raise CheckFailed(str(worst))
            passed.append(tower)
            errors[tower.name] = found
        except Exception as error:  # a failure is a line of the report, whatever it is
            absent.append(Absence(tower.name, reason_of(error), tower.key in OURS))
    if not passed:
        return [], absent
    rows = measure_together(
        {tower.name: lambda t=tower: t.run(case, captions, cotangent) for tower in passed},
        check=lambda: True,  # each has passed its own
        device=case.device,
        warmup=1,
        runs=runs,
        items=case.batch,
        ratios_to=[tower.name for tower in passed if tower.is_ours],
        after_run=tick,
        batch=case.batch,
        width=reference.model.ln_final.weight.shape[0],
        precision=case.precision,
        **captions.fields,
    )
    for row, tower in zip(rows, passed, strict=True):
        row.update(contender=tower.key, **errors[tower.name])
    return rows, absent
