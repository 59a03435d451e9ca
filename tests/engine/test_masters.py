"""The exact weights of a real DeepSpeed engine, wherever they are kept."""

import pytest
import torch
from torch import Tensor

from clipfast.engine.builders import Builders
from clipfast.engine.deepspeed.masters import exact_parameters
from clipfast.engine.deepspeed.wrap import set_learning_rate
from clipfast.engine.export import full_state_dict
from tests.engine.launching import free_port, start_rank
from tests.engine.plans import EXACT, PAPER, plan
from tests.engine.state_cases import tiny_model
from tests.ranks import run_ranks

CASES = [
    ("fp32", 0, EXACT),
    ("bf16", 0, PAPER),
    ("bf16", 1, EXACT),
    ("bf16", 1, PAPER),
    ("bf16", 2, PAPER),
    ("bf16", 3, PAPER),
]


def _exact(port: int) -> list[list[tuple]]:
    """Of each case and parameter: name, shapes match, is the nearest bf16, has more bits."""
    process = start_rank(port)
    found = []
    torch.manual_seed(0)
    for precision, stage, options in CASES:
        made = plan(options, precision, stage)
        engine = Builders(model=lambda plan: tiny_model()).build_engine(made)
        set_learning_rate(engine, 1e-3)
        images = torch.randn(2, 3, 64, 64, dtype=made.dtype)
        tokens = torch.tensor([[1, 2, 3, 499], [4, 5, 6, 499]])
        image_features, text_features, scale = engine(images, tokens)
        engine.backward(scale.sum() * (image_features * text_features).float().sum())
        engine.step()
        shapes = {name: tuple(p.shape) for name, p in tiny_model().named_parameters()}
        rows = []
        state = full_state_dict(engine, process)
        parameters = dict(engine.module.named_parameters())
        for name, exact in exact_parameters(engine):
            assert torch.equal(exact, state[name]), name
            assert exact.dtype == torch.float32
            half = exact.bfloat16()
            is_nearest = stage == 3 or _is_nearest(parameters[name].detach(), exact)
            has_bits = not torch.equal(half.float(), exact)
            rows.append((name, tuple(exact.shape) == shapes[name], is_nearest, has_bits))
        assert {row[0] for row in rows} == shapes.keys() == state.keys()
        found.append(rows)
        engine.module.zero_grad(set_to_none=True)
        engine.destroy()
    return found


def _is_nearest(parameter: Tensor, exact: Tensor) -> bool:
    """Whether no value of the parameter's type is nearer; of two as near, either will do.

    A remainder of int16 rounds a weight half way between two bf16 values away from zero, where a
    cast rounds it to the even one.
    """
    nearest = (exact - exact.to(parameter.dtype).float()).abs()
    return bool(((exact - parameter.float()).abs() <= nearest).all())


@pytest.fixture(scope="module")
def found() -> dict[tuple, list[tuple]]:
    cases = run_ranks(1, _exact, free_port())[0]
    return dict(zip([(p, s, o is PAPER) for p, s, o in CASES], cases, strict=True))


@pytest.mark.parametrize("case", [(p, s, o is PAPER) for p, s, o in CASES], ids=str)
def test_exact_parameters_are_what_the_model_computes_with_and_more(found, case):
    is_paper = case[2]
    for name, has_shape, is_nearest, _ in found[case]:
        assert has_shape, name
        assert is_nearest, name
    exact = {name: has_bits for name, _, _, has_bits in found[case]}
    # The image tower keeps exact weights in every case. The text tower of the paper's combination
    # has values of half precision alone.
    assert exact["visual.conv1.weight"]
    assert exact["text_projection"] == (not is_paper)
