"""An objective from outside the package, in this one file: a margin loss with a learned margin."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from clipfast.data import ImageTextBatch
from clipfast.engine import Config, ConfigError, LossOptions, ModelOptions
from clipfast.engine.builders import Builders
from clipfast.engine.checkpoint import Checkpoints
from clipfast.engine.deepspeed.wrap import set_learning_rate
from clipfast.engine.export import export_final
from clipfast.engine.launch import Process
from clipfast.engine.plan import RunPlan, decide
from clipfast.engine.step import train_step
from clipfast.loss import Objective, list_objectives, objectives, register_objective
from clipfast.models import CLIP, create_model, export, load_weights
from clipfast.optim import parameter_groups
from tests.engine.launching import free_port, start_rank
from tests.models.helpers import random_images, random_tokens
from tests.ranks import run_ranks

BATCH, START = 8, 0.25


class Margin(Objective):
    """mean over pairs and others of relu(m + cos(u_i, v_j) - cos(u_i, v_i)), plus (m - 1)^2."""

    name = "margin"
    scalars = {"margin": START}  # noqa: RUF012

    def prepare(self, text_features: Tensor, batch_sizes: Sequence[int]) -> Any:
        return F.normalize(text_features.float(), dim=-1)

    def loss(
        self,
        image_features: Tensor,
        texts: Any,
        logit_scale: Tensor,
        *scalars: Tensor,
        batch_sizes: Sequence[int],
    ) -> Tensor:
        (margin,) = scalars
        cosines = F.normalize(image_features.float(), dim=-1) @ texts.T
        violated = (margin + cosines - cosines.diagonal()[:, None]).relu()
        return violated.mean() + (margin - 1).square().sum() + 0.0 * logit_scale.sum()

    def held_bytes(self, local_batch: int, global_batch: int) -> int:
        return 12 * local_batch * global_batch


@pytest.fixture(autouse=True)
def margin() -> Iterator[None]:
    register_objective(Margin())
    yield
    del objectives._OBJECTIVES["margin"]


def small(**overrides: object) -> CLIP:
    sizes = {"text_layers": 1, "vision_layers": 1, "vocab_size": 500}
    return create_model("ViT-tiny", scalars=(("margin", START),), **sizes, **overrides)


def batch() -> ImageTextBatch:
    tokens = random_tokens(BATCH, 40, 500)
    return ImageTextBatch(
        images=random_images(BATCH, 64),
        tokens=tokens,
        lengths=tokens.argmax(dim=-1) + 1,
        epoch=0,
        index=0,
        shard=torch.zeros(BATCH, dtype=torch.int64),
        row=torch.arange(BATCH),
    )


def watch_gradients(model: CLIP) -> dict[str, Tensor]:
    """Gradients of the next step by name: sums over the micro-batches so far."""
    gradients: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters():
        parameter.register_post_accumulate_grad_hook(
            lambda p, name=name: gradients.update({name: p.grad.detach().clone()})
        )
    return gradients


def train(folder: str, port: int) -> dict[str, Any]:
    """Two steps whole, saved, and two in micro-batches of 2; then what was saved, loaded."""
    register_objective(Margin())
    process = start_rank(port)

    def plan(micro_batch: int | None) -> RunPlan:
        options = ModelOptions("ViT-tiny", compile="none")
        config = Config(
            model=options, loss=LossOptions("margin"), batch_size=BATCH, micro_batch=micro_batch
        )
        return decide(config, process)

    def build(of: RunPlan) -> Any:
        torch.manual_seed(0)
        engine = Builders(model=lambda _: small()).build_engine(of)
        engine.train()
        set_learning_rate(engine, 1e-2)
        return engine

    found: dict[str, Any] = {}
    for name, micro_batch in (("whole", None), ("micro", 2)):
        made = plan(micro_batch)
        engine = build(made)
        gradients = watch_gradients(engine.module)
        losses, first = [], {}
        for _ in range(2):
            loss, _ = train_step(engine, batch(), made.micro_batches, made.objective)
            losses.append(loss.item())
            # Those of equal weights: what the second step adds is Adam's answer to rounding.
            first = first or dict(gradients)
        state = {key: p.detach().clone() for key, p in engine.module.named_parameters()}
        found[name] = {"losses": losses, "gradients": first, "state": state}
        if name == "whole":
            checkpoints = Checkpoints(Path(folder), 1, process, made.layout)
            checkpoints.save(engine, 2, {})
            export_final(engine, Path(folder) / "final.safetensors", process)
    resumed = build(plan(None))
    checkpoints.load(resumed, checkpoints.choose("latest"))
    found["resumed"] = {k: p.detach().clone() for k, p in resumed.module.named_parameters()}
    return found


def test_an_objective_from_outside_trains_and_is_saved(tmp_path: Path) -> None:
    (found,) = run_ranks(1, train, str(tmp_path), free_port())
    whole, micro = found["whole"], found["micro"]
    assert whole["losses"][1] < whole["losses"][0]
    assert micro["losses"] == pytest.approx(whole["losses"], rel=1e-5)
    assert whole["gradients"].keys() >= {"margin", "visual.conv1.weight", "text_projection"}
    for name, gradient in whole["gradients"].items():
        largest = gradient.abs().max().item()
        error = (micro["gradients"][name] - gradient).abs().max().item()
        assert error <= 1e-4 * largest + 1e-7, name
    # d/dm (m - 1)^2 at the start is 2 (m - 1), far more than the pairs' share of at most 1.
    assert START < whole["state"]["margin"].item() < 1
    for name, tensor in whole["state"].items():
        assert torch.equal(found["resumed"][name], tensor), name
    model = small()
    load_weights(model, tmp_path / "final.safetensors")
    assert torch.equal(model.margin, whole["state"]["margin"])


def test_an_objective_from_outside_is_chosen_by_name() -> None:
    alone = Process(0, 0, 1, 1, torch.device("cpu"))
    options = Config(model=ModelOptions("ViT-tiny"), loss=LossOptions("margin"), batch_size=4)
    plan = decide(options, alone)
    assert isinstance(plan.objective, Margin)
    assert plan.architecture.scalars == (("margin", START),)
    assert plan.layout["loss"] == "margin"
    misspelt = Config(model=ModelOptions("ViT-tiny"), loss=LossOptions("margn"), batch_size=4)
    with pytest.raises(ConfigError, match=r"--loss\.name: unknown .*Did you mean 'margin'\?"):
        decide(misspelt, alone)
    assert list_objectives() == ["contrastive", "margin"]
    with pytest.raises(ValueError, match="an objective 'margin' already"):
        register_objective(Margin())


def test_scalars_start_where_the_objective_says_and_do_not_decay() -> None:
    model = small()
    assert model.margin.item() == START
    *_, scale, margin = model(random_images(2, 64), random_tokens(2, 10, 500))
    assert torch.equal(margin, model.margin)
    assert scale.item() == pytest.approx(1 / 0.07)
    (group,) = (
        g for g in parameter_groups(model, 0.2) if any(p is model.margin for p in g["params"])
    )
    assert group["weight_decay"] == 0
    started = create_model("ViT-tiny", text_layers=1, scalars=(("logit_scale", 2.0),))
    assert started.logit_scale.item() == 2.0
    assert len(started(tokens=random_tokens(1, 5, 500))) == 3


def test_weights_without_the_scalar_leave_it_where_it_is(tmp_path: Path) -> None:

    export(
        create_model("ViT-tiny", text_layers=1, vision_layers=1, vocab_size=500), tmp_path / "w.pt"
    )
    model = small()
    load_weights(model, tmp_path / "w.pt")
    assert model.margin.item() == START
