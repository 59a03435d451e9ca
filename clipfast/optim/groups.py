"""Which parameters decay, which do not, and which are bounded."""

import math
from typing import Any

import numpy as np
from torch import nn

_NORMALIZATION = (nn.LayerNorm, nn.GroupNorm, nn.modules.batchnorm._BatchNorm)
# The largest float32 whose exponential is not above 100; log(100) itself rounds up.
LOGIT_SCALE_MAXIMUM = float(np.nextafter(np.float32(math.log(100.0)), np.float32(0)))


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Split a CLIP model's parameters into three groups for ``AdamW``.

    1. weights and embeddings, decayed;
    2. gains and biases, not decayed;
    3. ``logit_scale``, not decayed, bounded so that its exponential stays at or under 100. It has a
       group of its own so that under ZeRO the bound acts on its master partition alone.

    Args:
        model: any module; normalisation layers are recognised by type, biases by name.
        weight_decay: decoupled decay of the first group, per step and unit of learning rate.

    Returns:
        Group dictionaries for ``clipfast.optim.AdamW``; groups without parameters are left out.

    Source: Radford et al. 2021, section 2.5 ("all weights that are not gains or biases").
    """
    gains = {
        id(parameter)
        for module in model.modules()
        if isinstance(module, _NORMALIZATION)
        for parameter in module.parameters(recurse=False)
    }
    decayed, exempt, scale = [], [], []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        if name.rpartition(".")[2] == "logit_scale":
            scale.append(parameter)
        elif id(parameter) in gains or name.endswith("bias"):
            exempt.append(parameter)
        else:
            decayed.append(parameter)
    groups = [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": exempt, "weight_decay": 0.0},
        {"params": scale, "weight_decay": 0.0, "maximum": LOGIT_SCALE_MAXIMUM},
    ]
    return [group for group in groups if group["params"]]
