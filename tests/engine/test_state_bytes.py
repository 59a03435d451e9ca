"""Bytes beside activations: counted from the plan, and against what tensors hold."""

import pytest
import torch

from clipfast.engine.plan import RunPlan
from clipfast.engine.state_bytes import StateBytes, saved_bytes, state_bytes
from clipfast.models import create_model
from tests.engine.plans import EXACT, PAPER, plan
from tests.engine.state_cases import cases, measure, plan_of, tiny_model


def linear() -> tuple[torch.nn.Module, int]:
    with torch.device("meta"):
        return torch.nn.Linear(1000, 999), 1_000_000 - 1000 + 999


def test_state_bytes_of_the_zero_stages():
    model, count = linear()
    # Weights, gradients and Adam's two moments, in float32.
    assert state_bytes(plan(EXACT, "fp32", 0), model).total == 16 * count
    # Half-precision weights and gradients beside master, moments and one float32 gradient.
    assert state_bytes(plan(EXACT, "bf16", 1), model).total == 20 * count
    of_eight = state_bytes(plan(EXACT, "bf16", 1, 8), model).total
    assert of_eight == round((4 + 16 / 8 + 4) * count)


@pytest.mark.parametrize(("stage", "ranks"), [(0, 1), (0, 8), (1, 1), (2, 8)])
def test_saved_bytes_are_weights_and_statistics_once(stage, ranks):
    model, count = linear()
    for precision in ("fp32", "bf16"):
        saved = saved_bytes(plan(EXACT, precision, stage, ranks), model)
        assert saved == pytest.approx((4 + 8) * count, abs=8)


def test_state_bytes_count_the_sums_over_micro_batches():
    model, count = linear()
    whole = state_bytes(plan(EXACT, "bf16", 1, 16), model)
    first, second = (
        state_bytes(plan(EXACT, "bf16", stage, 16, micro_batch=1), model) for stage in (1, 2)
    )
    assert first.gradients == whole.gradients + 4 * count
    assert first.total > second.total


def test_state_bytes_of_the_papers_combination():
    with torch.device("meta"):
        model = create_model("RN50")
    image = sum(p.numel() for p in model.visual.parameters())
    count = sum(p.numel() for p in model.parameters())
    held = state_bytes(plan(PAPER, "bf16", 1), model)
    # Beside the bf16 weights: DeepSpeed's copy of them, fp16 moments and their exponents.
    assert held.optimizer == pytest.approx(count * (2 + 4 + 2 / 256) + 2 * image, abs=10)
    # fp16 on an older GPU: float32 masters and fp16 moments.
    held = state_bytes(plan(PAPER, "fp16", 1), model)
    assert held.optimizer == pytest.approx(count * (4 + 4 + 2 / 256), abs=10)


@pytest.mark.slow
def test_state_bytes_are_those_that_tensors_hold_in_every_format_at_every_stage():
    formats = (
        ("fp32", ("fp32", "fp32")),
        ("fp16", ("remainder", "stochastic")),
        ("bf16", ("stochastic", "fp32")),
    )
    paper = cases(formats[1:2])
    # In float32 the optimizer keeps no weights, whatever the policy: one format will do.
    one = [case for case in cases(formats) if case[0] == "bf16" or case in paper]
    for ranks, of in ((1, one), (2, [paper[5], paper[7]])):
        for case, held in zip(of, measure(of, ranks), strict=True):
            assert_held(held, plan_of(case, ranks), f"{case} on {ranks}")


def assert_held(held: StateBytes, made: RunPlan, case: str) -> None:
    largest = 4 * max(p.numel() for p in tiny_model().parameters())
    counted = state_bytes(made, tiny_model())
    # What is not counted: step counts, padding, and the ends of blocks of 256.
    assert held.weights == pytest.approx(counted.weights, rel=2e-3), case
    assert held.optimizer == pytest.approx(counted.optimizer, rel=2e-3), case
    if made.process.world_size == 1 or made.stage > 1:
        # Now and then DeepSpeed still holds the last gradient of the largest parameter.
        assert held.gradients >= counted.gradients * (1 - 2e-3), case
        assert held.gradients <= counted.gradients * (1 + 2e-3) + largest, case
    else:
        # Other ranks' parts are gone by the end of the backward pass; counted is its peak.
        assert counted.gradients / 2 <= held.gradients <= counted.gradients, case
