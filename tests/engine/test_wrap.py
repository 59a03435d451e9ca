"""What DeepSpeed's engine is told beyond its settings."""

import torch

from clipfast.engine.builders import Builders
from clipfast.engine.deepspeed.wrap import set_learning_rate
from tests.engine.launching import free_port, start_rank
from tests.engine.plans import plan
from tests.engine.state_cases import tiny_model
from tests.ranks import run_ranks


def _rows_made(port: int) -> tuple[int, bool]:
    """How often gradients were laid in a row, and whether the step moved weights."""
    start_rank(port)
    engine = Builders(model=lambda plan: tiny_model()).build_engine(plan(stage=0))
    set_learning_rate(engine, 1e-3)
    calls = []
    flatten = engine.flatten
    engine.flatten = lambda bucket: calls.append(1) or flatten(bucket)
    before = [parameter.detach().clone() for parameter in engine.module.parameters()]
    tokens = torch.tensor([[1, 2, 3, 499], [4, 5, 6, 499]])
    image_features, text_features, scale = engine(torch.randn(2, 3, 64, 64), tokens)
    engine.backward(scale.sum() * (image_features * text_features).sum())
    engine.step()
    after = engine.module.parameters()
    return len(calls), any(not torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_one_rank_at_stage_0_copies_no_gradients_for_a_reduction():
    assert run_ranks(1, _rows_made, free_port())[0] == (0, True)
