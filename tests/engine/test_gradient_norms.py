"""Gradient norms of the whole model and of each tower, as a logging row has them."""

import itertools

import pytest
import torch

from clipfast.engine import Config, OptimizerConfig, ZeroConfig
from clipfast.engine.deepspeed.norms import GradientNorms, towers_of
from clipfast.engine.deepspeed.wrap import initialise_engine, set_learning_rate, step_figures
from clipfast.engine.launch import Process
from clipfast.engine.optimizer import build_optimizer
from clipfast.engine.plan import decide
from clipfast.loss import clip_loss
from clipfast.optim.groups import TOWERS, tower_of_parameter
from tests.engine.launching import free_port, start_rank
from tests.engine.state_cases import tiny_model
from tests.ranks import run_ranks

BATCH = 8
NAMES = {"grad_norm", *(f"grad_norm/{tower}" for tower in TOWERS)}
# Clipped and not; in bf16 the gradients that a rank clips lie elsewhere.
CASES = [
    *itertools.product(("fp32",), range(4), (0.0, 0.01)),
    *(("bf16", stage, 0.01) for stage in range(4)),
]
# How bf16 rounds features and gradients.
TOLERANCE = {"fp32": 1e-4, "bf16": 0.05}


def pairs() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(1, 499, (BATCH, 6), generator=generator)
    tokens[:, -1] = 499
    return torch.randn(BATCH, 3, 64, 64, generator=generator), tokens


def fresh_model() -> torch.nn.Module:
    torch.manual_seed(0)
    return tiny_model()


def expected() -> dict[str, float]:
    """Of one process that holds the whole batch."""
    model = fresh_model()
    clip_loss(*model(*pairs()), group="local").backward()
    squares = dict.fromkeys(TOWERS, 0.0)
    for name, parameter in model.named_parameters():
        squares[tower_of_parameter(name)] += parameter.grad.square().sum().item()
    towers = {f"grad_norm/{tower}": square**0.5 for tower, square in squares.items()}
    return {"grad_norm": sum(squares.values()) ** 0.5, **towers}


def _measure(port: int) -> list[dict[str, float]]:
    process = start_rank(port)
    images, tokens = (x.chunk(process.world_size)[process.rank] for x in pairs())
    found = []
    for precision, stage, clip_norm in CASES:
        config = Config(
            optimizer=OptimizerConfig(clip_norm=clip_norm),
            zero=ZeroConfig(stage),
            batch_size=BATCH,
            precision=precision,
        )
        plan = decide(config, process)
        model = fresh_model()
        engine = initialise_engine(plan, model, build_optimizer(plan, model))
        set_learning_rate(engine, 1e-3)
        with engine.gradient_norms.observed():
            engine.backward(clip_loss(*engine(images.to(plan.dtype), tokens)))
            engine.step()
        found.append(step_figures(engine, plan.dtype))
        inner = getattr(engine.optimizer, "optimizer", engine.optimizer)
        assert not inner._optimizer_step_pre_hooks, "a step that is not logged pays for nothing"
        engine.destroy()
    return found


@pytest.mark.slow
def test_norms_are_the_gradients_at_every_stage_clipped_or_not():
    both = run_ranks(2, _measure, free_port())
    want = expected()
    assert both[0] == both[1]
    for (precision, stage, clip_norm), got in zip(CASES, both[0], strict=True):
        assert got.keys() == NAMES
        for name, norm in want.items():
            error = abs(got[name] / norm - 1)
            assert error < TOLERANCE[precision], (precision, stage, clip_norm, name, got[name])


class _Engine:
    """What the norms ask of DeepSpeed in fp16, which needs a GPU."""

    def __init__(self, optimizer: object, norm: float) -> None:
        self.optimizer = optimizer
        self.norm = norm

    def get_global_grad_norm(self) -> float:
        return self.norm


class _Wrapper:
    """An optimizer of DeepSpeed's whose loss scale doubles with the step."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer
        self.loss_scale = 4.0

    def step(self) -> None:
        self.loss_scale *= 2
        self.optimizer.step()


class FP16_UnfusedOptimizer(_Wrapper):
    """That of stage 0: its norm is of the scaled gradient."""


class Stage3(_Wrapper):
    fp32_partitioned_groups_flat = ()


@pytest.mark.parametrize(
    # A gradient of norm 5, scaled by 4; stage 3 divides it by the next step's scale.
    ("wrapper", "told"),
    [(FP16_UnfusedOptimizer, 20.0), (Stage3, 20.0 / 8.0), (_Wrapper, 5.0)],
)
def test_norms_of_fp16_are_those_of_the_unscaled_gradient(wrapper, told):
    parameters = [torch.nn.Parameter(torch.zeros(1)) for _ in range(2)]
    optimizer = torch.optim.SGD([{"params": [p]} for p in parameters], lr=0.1)
    for parameter, gradient in zip(parameters, (3.0, 4.0), strict=True):
        parameter.grad = torch.tensor([gradient])
    wrapped = wrapper(optimizer)
    norms = GradientNorms(_Engine(wrapped, told), ["image", "text"], 0)
    with norms.observed():
        wrapped.step()
    assert norms.figures() == pytest.approx(
        {"grad_norm": 5.0, "grad_norm/image": 3.0, "grad_norm/text": 4.0}
    )


def test_a_skipped_step_has_the_whole_norm_alone():
    wrapped = _Wrapper(torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1))
    norms = GradientNorms(_Engine(wrapped, float("inf")), ["image"], 0)
    with norms.observed():
        pass
    assert norms.figures() == {"grad_norm": float("inf")}


def test_groups_that_mix_towers_have_no_tower():
    model = tiny_model()
    plan = decide(Config(batch_size=2), Process(0, 0, 1, 1, torch.device("cpu")))
    assert towers_of(model, build_optimizer(plan, model)) == [
        *["image"] * 2,
        *["text"] * 2,
        "scalars",
    ]
    assert towers_of(model, torch.optim.SGD(model.parameters(), lr=0.1)) is None
