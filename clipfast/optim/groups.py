"""Which parameters decay, which do not, which are bounded, and how each tower's are kept."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import nn

_NORMALIZATION = (nn.LayerNorm, nn.GroupNorm, nn.modules.batchnorm._BatchNorm)
# Where CLIP holds its towers: the first part of a parameter's name.
_TOWERS = {
    "visual": "image",
    "transformer": "text",
    "token_embedding": "text",
    "positional_embedding": "text",
    "ln_final": "text",
    "text_projection": "text",
}
# As metrics name them; the last is what belongs to neither tower.
TOWERS = ("image", "text", "scalars")
# The largest float32 whose exponential is not above 100; log(100) itself rounds up.
LOGIT_SCALE_MAXIMUM = float(np.nextafter(np.float32(math.log(100.0)), np.float32(0)))


def tower_of_parameter(name: str) -> str:
    """Which of ``TOWERS`` a parameter of a CLIP model belongs to.

    Args:
        name: in the model.
    """
    return _TOWERS.get(name.partition(".")[0], "scalars")


def parameter_groups(
    model: nn.Module,
    weight_decay: float,
    *,
    image: Mapping[str, Any] | None = None,
    text: Mapping[str, Any] | None = None,
) -> list[dict[str, Any]]:
    """Split a CLIP model's parameters into groups for ``FusedAdamW``.

    For the image tower, the text tower and what belongs to neither, two groups each:

    1. weights and embeddings, decayed;
    2. gains, biases and single numbers, not decayed;

    and last ``logit_scale``, not decayed, bounded so that its exponential stays at or under 100. It
    has a group of its own so that under ZeRO the bound acts on its master partition alone, and its
    weight stays exact whatever the towers' do.

    Args:
        model: any module; the towers are recognised by the names CLIP gives them, normalisation
            layers by type, biases and gains of others by name.
        weight_decay: decoupled decay of weights and embeddings, per step and unit of learning rate.
        image: further options of the image tower's groups, such as ``{"weights": "remainder"}``.
        text: those of the text tower's.

    Returns:
        Group dictionaries; groups without parameters are left out.

    Source: Radford et al. 2021, section 2.5 ("all weights that are not gains or biases", and "half-
    precision stochastically rounded text encoder weights").
    """
    gains = {
        id(parameter)
        for module in model.modules()
        if isinstance(module, _NORMALIZATION)
        for parameter in module.parameters(recurse=False)
    }
    options = {"image": dict(image or {}), "text": dict(text or {}), "scalars": {}}
    groups: dict[tuple[str, bool], dict[str, Any]] = {
        (tower, decays): {
            "params": [],
            "weight_decay": weight_decay if decays else 0.0,
            "weights": "fp32",
            **options[tower],
        }
        for tower in options
        for decays in (True, False)
    }
    scale: dict[str, Any] = {
        "params": [],
        "weight_decay": 0.0,
        "weights": "fp32",
        "maximum": LOGIT_SCALE_MAXIMUM,
    }
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        if name.rpartition(".")[2] == "logit_scale":
            scale["params"].append(parameter)
            continue
        tower = tower_of_parameter(name)
        # One element is no matrix: a bias or a margin that an objective brings.
        is_scalar = getattr(parameter, "ds_numel", parameter.numel()) == 1
        exempt = id(parameter) in gains or name.endswith(("bias", ".gain")) or is_scalar
        groups[tower, not exempt]["params"].append(parameter)
    return [group for group in (*groups.values(), scale) if group["params"]]
