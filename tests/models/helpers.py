"""Small models and inputs for the tests of `clipfast.models`."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from clipfast.models import CLIP, create_model

SMALL = {"text_layers": 2, "vocab_size": 500}


def small_model(name: str, seed: int = 0, **overrides: object) -> CLIP:
    """A tiny model with few words, all of whose branches count."""
    torch.manual_seed(seed)
    model = create_model(name, **{**SMALL, **overrides})
    randomize_vectors(model)
    return model


@torch.no_grad()
def randomize_vectors(model: nn.Module) -> None:
    """Move gains, biases and running statistics off 0 and 1, where a mistake could not show."""
    for parameter in model.parameters():
        if parameter.ndim == 1 and parameter.numel() > 1:
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.8, 1.2)
            if (module.weight.abs() < 0.5).all():
                module.weight.add_(0.5)


def random_tokens(batch: int, length: int, vocab_size: int, seed: int = 0) -> Tensor:
    """[batch, length] captions of unequal length, zero behind the end-of-text token."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(1, vocab_size - 2, (batch, length), generator=generator)
    for row in range(batch):
        end = length - 1 - 3 * row
        tokens[row, end] = vocab_size - 1
        tokens[row, end + 1 :] = 0
    return tokens


def random_images(batch: int, size: int, seed: int = 0) -> Tensor:
    """[batch, 3, size, size] pixels of unit variance."""
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(seed))


def assert_near(actual: Tensor, expected: Tensor, tolerance: float) -> None:
    """The largest difference is at most `tolerance` times the largest expected value."""
    assert actual.shape == expected.shape
    error = (actual - expected).abs().max().item()
    magnitude = expected.abs().max().item()
    assert error <= tolerance * magnitude, f"{error:.3g} off at a magnitude of {magnitude:.3g}"
