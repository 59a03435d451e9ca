"""The parameters that ``adamw.py`` times a step on."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from clipfast.models import create_model

FLAT = "flat"
# Gains and biases, and no product's weight: what a tensor costs the host.
SMALL = "400 small"
MODELS = ("ViT-L/14", "RN50x64")
LISTS = (FLAT, *MODELS, SMALL)
# Random numbers that tensors are filled with over and over.
_NOISE = 1 << 22


def shapes_of(name: str, elements: int) -> list[torch.Size]:
    """The shapes of a model's parameters, of small tensors, or of one flat one of `elements`."""
    if name == FLAT:
        return [torch.Size([elements])]
    if name == SMALL:
        return [torch.Size([64])] * 400
    with torch.device("meta"):
        return [parameter.shape for parameter in create_model(name).parameters()]


class Problem:
    """Parameters with gradients, made anew for each contender or shared by those of one dtype."""

    def __init__(self, shapes: Sequence[torch.Size], device: torch.device) -> None:
        self.shapes, self.device = shapes, device
        generator = torch.Generator().manual_seed(0)
        self.noise = torch.randn(_NOISE, generator=generator).to(device)
        self.scales = (1e-4 * torch.exp(2 * torch.randn(len(shapes), generator=generator))).tolist()

    @property
    def elements(self) -> int:
        return sum(map(math.prod, self.shapes))

    def parameters(self, dtype: torch.dtype) -> list[Tensor]:
        """Weights of deviation 0.05 and their gradients; every page is written."""
        params = []
        for shape, scale in zip(self.shapes, self.scales, strict=True):
            param, grad = (self._filled(shape, s, dtype) for s in (0.05, scale))
            param.grad = grad
            params.append(param)
        return params

    def _filled(self, shape: torch.Size, scale: float, dtype: torch.dtype) -> Tensor:
        filled = torch.empty(shape, dtype=dtype, device=self.device)
        values = (scale * self.noise[: filled.numel()]).to(dtype)
        for part in filled.view(-1).split(_NOISE):
            part.copy_(values[: part.numel()])
        return filled
