"""The models by name: the nine of the paper, two tiny ones for tests, and what is registered.

Source: Radford et al. 2021, tables 18 to 20.
"""

from __future__ import annotations

from typing import Any

from clipfast.arguments import WrongKindError, shown
from clipfast.models.architecture import Architecture, TextConfig
from clipfast.models.checks import unknown_name
from clipfast.models.resnet import ResNetConfig
from clipfast.models.towers import tower_of
from clipfast.models.vit import ViTConfig

_MODELS = {
    config.name: config
    for config in (
        Architecture("RN50", 1024, ResNetConfig((3, 4, 6, 3))),
        Architecture("RN101", 512, ResNetConfig((3, 4, 23, 3))),
        Architecture("RN50x4", 640, ResNetConfig((4, 6, 10, 6), 80, 288), TextConfig(width=640)),
        Architecture("RN50x16", 768, ResNetConfig((6, 8, 18, 8), 96, 384), TextConfig(width=768)),
        Architecture(
            "RN50x64", 1024, ResNetConfig((3, 15, 36, 10), 128, 448), TextConfig(width=1024)
        ),
        Architecture("ViT-B/32", 512, ViTConfig(12, 768, 32)),
        Architecture("ViT-B/16", 512, ViTConfig(12, 768, 16)),
        Architecture("ViT-L/14", 768, ViTConfig(24, 1024, 14), TextConfig(width=768)),
        Architecture("ViT-L/14@336px", 768, ViTConfig(24, 1024, 14, 336), TextConfig(width=768)),
        Architecture("RN-tiny", 256, ResNetConfig((1, 1, 2, 1), 32, 64), TextConfig(4, 192)),
        Architecture("ViT-tiny", 256, ViTConfig(7, 256, 8, 64), TextConfig(4, 192)),
    )
}


def register_model(architecture: Architecture) -> Architecture:
    """Make a model known by its name, to `create_model`, `list_models` and the engine.

    Args:
        architecture: the model; `register_tower` must know its image tower.

    Returns:
        The same architecture.

    Raises:
        ValueError: the name is taken, or there is no such tower.
    """
    if architecture.name in _MODELS:
        raise ValueError(f"there is a model {architecture.name!r} already: give yours another name")
    tower_of(architecture.vision)
    _MODELS[architecture.name] = architecture
    return architecture


def list_models() -> list[str]:
    """Names that `create_model` knows: the paper's nine, then two of 17M parameters for tests.

    Returns:
        The names, ResNets before ViTs, smaller before larger, the tiny ones behind them; last
        those of `register_model`.
    """
    return list(_MODELS)


def get_config(name: str, **overrides: Any) -> Architecture:
    """The architecture of one model.

    Args:
        name: one of `list_models()`.
        overrides: flat field names, see `Architecture.override`.

    Returns:
        The checked architecture.

    Raises:
        ValueError: for an unknown name, with the nearest one, or an override that does not fit.
    """
    if not isinstance(name, str):
        raise WrongKindError(f"a model's name is text; got {shown(name)}")
    if name not in _MODELS:
        raise ValueError(unknown_name("model", name, _MODELS))
    return _MODELS[name].override(**overrides)
