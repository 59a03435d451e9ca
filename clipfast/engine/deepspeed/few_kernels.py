"""One look at all gradients where DeepSpeed 0.19 looks at each of them alone.

Before a step its optimizers ask every gradient for its least and its largest value, and every one
for a norm, at ZeRO 1 to 3 of a copy in float64: 13 to 21 kernels per parameter, 6,500 of them for
a ViT-B/32, which a GPU is through long before the host has launched them; and stage 0 waits for
each. The norm alone tells both: it is no number where a gradient is none, and DeepSpeed skips such
a step as it skips one with an overflow.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def look_once(engine: Any) -> None:
    """Have an engine's optimizer find overflows by the norm, and the norm in a few kernels.

    What is trained, skipped and told stays the same, but for the last bits of the norm.

    Args:
        engine: the DeepSpeed engine.
    """
    optimizer = engine.optimizer
    if hasattr(optimizer, "overflow_checker"):
        optimizer.overflow_checker.check = lambda *_, **__: False
    if not hasattr(optimizer, "get_grad_norm_direct"):
        return
    if getattr(optimizer, "compute_grad_norm", False):
        optimizer.check_overflow = lambda partition_gradients=True: None
    direct = optimizer.get_grad_norm_direct

    def norm(gradients: Sequence[Tensor], params: Sequence[Tensor], norm_type: float = 2) -> Any:
        each = [g for g in gradients if not getattr(g, "_zero_padding", False)][: len(params)]
        if norm_type != 2 or not each:
            return direct(gradients, params, norm_type)
        # The norm of norms is the norm of all: DeepSpeed goes on with one gradient.
        norms = torch.stack(torch._foreach_norm(each, 2, dtype=torch.float32))
        return direct([norms], params[:1], norm_type)

    optimizer.get_grad_norm_direct = norm
