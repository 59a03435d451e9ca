"""Gradients for ``adamw_proof.py``: drawn from distributions, or recorded from the demo's training.

Drawn: an element's scale is fixed, its gradient is normal with that scale at each step.

    narrow       one scale
    log-normal   scales exp(2 x), x normal: a tensor's spread over five decades
    8 decades    scales 10^-8 to 1, evenly in the logarithm, side by side in every block
    sparse       an embedding: rows of 256, row r touched with probability (1 + r)^-1.25 per step
    straddling   the same with rows of 192, as in the demo: blocks of 256 hold the ends of two rows
                 of different fates (in the paper's models, RN50x4's rows of 640 do that)
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from clipfast.data import TrainLoader
from clipfast.loss import clip_loss
from clipfast.models import create_model
from clipfast.optim import FusedAdamW, parameter_groups, warmup_cosine
from recipes.emoji import config as demo_config

KINDS = ("narrow", "log-normal", "8 decades", "sparse", "straddling")
_ROWS = {"sparse": 256, "straddling": 192}
# Rows of the token embedding that are recorded: ids ascend with rarity, so nearly all that the
# sample's captions use are among the first.
_EMBEDDING_ROWS = 4096
# Recorded beside the embedding: every kind of parameter, from both ends of both towers.
_RECORDED = (
    "visual.conv1.",
    "visual.bn1.",
    "visual.layer2.",
    "visual.layer4.0.conv2.",
    "visual.attnpool.positional_embedding",
    "visual.attnpool.c_proj.",
    "positional_embedding",
    "transformer.resblocks.0.",
    "ln_final.",
    "text_projection",
    "logit_scale",
)


def gradients(kind: str, elements: int, seed: int = 0) -> Iterator[Tensor]:
    """Draw gradients, one tensor per step, without end.

    Args:
        kind: One of :data:`KINDS`.
        elements: Of the tensor; kinds with rows round it down to whole rows.
        seed: Of scales and gradients.

    Returns:
        float32 tensors ``[elements]``.
    """
    generator = torch.Generator().manual_seed(seed)
    if kind in _ROWS:
        width = _ROWS[kind]
        rows = elements // width
        rarity = torch.randperm(rows, generator=generator)
        probability = (1.0 + rarity).pow(-1.25)
        while True:
            touched = torch.rand(rows, generator=generator) < probability
            grad = torch.zeros(rows, width)
            grad[touched] = 1e-3 * torch.randn(int(touched.sum()), width, generator=generator)
            yield grad.flatten()
    scale = torch.full((elements,), 1e-3)
    if kind == "log-normal":
        scale = 1e-4 * torch.exp(2 * torch.randn(elements, generator=generator))
    elif kind == "8 decades":
        scale = 10 ** (-8 * torch.rand(elements, generator=generator))
    while True:
        yield scale * torch.randn(elements, generator=generator)


@dataclasses.dataclass(frozen=True)
class Trace:
    """What some of the demo's parameters were at the start, and their gradients since.

    Attributes:
        names: Of the parameters, the embedding cut to its first rows.
        weights: Their starting values.
        file: float32 ``[steps, elements]``, the gradients of all names side by side.
        steps: Recorded.
    """

    names: list[str]
    weights: list[Tensor]
    file: Path
    steps: int

    def gradients(self) -> Iterator[list[Tensor]]:
        """Each step's gradients, shaped like the weights."""
        sizes = [weight.numel() for weight in self.weights]
        rows = np.memmap(self.file, np.float32, "r", shape=(self.steps, sum(sizes)))
        for row in rows:
            parts = torch.from_numpy(row.copy()).split(sizes)
            yield [part.view_as(weight) for part, weight in zip(parts, self.weights, strict=True)]


def record(
    folder: Path, steps: int, batch: int, after_step: Callable[[float], object] = lambda loss: None
) -> Trace:
    """Train the demo's model for a while in float32 and keep gradients of both towers.

    The model, data, rate and decay are those of ``recipes/emoji.py``; the steps are the first of
    its schedule.

    Args:
        folder: Where the file goes: 4 bytes per element and step.
        steps: To record, from the first.
        batch: Pairs.
        after_step: Called with each step's loss.

    Returns:
        The trace.
    """
    config = demo_config()
    torch.manual_seed(config.seed)
    model = create_model(config.model.name).train()
    loader = TrainLoader(
        config.data.train,
        model.config.vision.image_size,
        batch,
        seed=config.seed,
        scale=config.data.scale,
        threads=torch.get_num_threads(),
    )
    options = config.optimizer
    optimizer = FusedAdamW(
        parameter_groups(model, options.weight_decay),
        betas=(options.beta1, options.beta2),
        eps=options.eps,
        stats_dtype=torch.float32,
    )
    total = int(config.schedule.epochs * loader.batches_per_epoch)
    chosen = {name: _cut(name, weight) for name, weight in _chosen(model)}
    started = [weight.detach().clone() for weight in chosen.values()]
    sizes = [weight.numel() for weight in started]
    file = folder / "gradients.f32"
    rows = np.memmap(file, np.float32, "w+", shape=(steps, sum(sizes)))
    for step, data in zip(range(steps), loader, strict=False):
        for group in optimizer.param_groups:
            group["lr"] = warmup_cosine(step, options.lr, config.schedule.warmup_steps, total)
        optimizer.zero_grad()
        features = model(data.images, data.tokens, lengths=data.lengths)
        loss = clip_loss(*features)
        loss.backward()
        grads = [_cut(name, weight.grad).flatten() for name, weight in _chosen(model)]
        torch.cat(grads, out=torch.from_numpy(rows[step]))
        optimizer.step()
        after_step(loss.item())
    rows.flush()
    return Trace(list(chosen), started, file, steps)


def _chosen(model: torch.nn.Module) -> list[tuple[str, Tensor]]:
    return [
        (name, parameter)
        for name, parameter in model.named_parameters()
        if name == "token_embedding.weight" or name.startswith(_RECORDED)
    ]


def _cut(name: str, tensor: Tensor) -> Tensor:
    return tensor[:_EMBEDDING_ROWS] if name == "token_embedding.weight" else tensor
