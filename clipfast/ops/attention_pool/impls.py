"""Who computes the steps of attention pooling that read tokens.

plain    clipfast/ops/attention_pool/plain.py, on any device
triton   kernels/attention_pool: sm_80 and newer, up to 256 tokens, not in fp64. Picked for
         half precision only
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from clipfast.ops import registry
from clipfast.ops.attention_pool import plain
from clipfast.ops.registry import PLAIN, TRITON

IMPLS = (PLAIN, TRITON)
MAX_TRITON_SAMPLES = 65_535  # a dimension of the grid
MAX_TRITON_TOKENS = 256  # as in kernels/attention_pool, which takes long to import


class Steps(NamedTuple):
    """One implementation's steps; see clipfast/ops/attention_pool/plain.py."""

    mean_token: Callable[..., Tensor]
    attend: Callable[..., tuple[Tensor, Tensor]]
    attend_backward: Callable[..., tuple[Tensor, Tensor, Tensor]]
    grad_tokens: Callable[..., tuple[Tensor, Tensor]]


STEPS = {
    PLAIN: Steps(*(getattr(plain, name) for name in Steps._fields)),
    TRITON: Steps(*(registry.launcher(f"attention_pool:launch_{name}") for name in Steps._fields)),
}


def available_impls(device: torch.device | str) -> list[str]:
    """Names of the implementations that can serve on a device, best first.

    Args:
        device: where the tokens are.

    Returns:
        Some of `IMPLS`. Interpreted Triton comes after plain torch: it is there for tests.
    """
    return registry.available_impls("attention_pool", device)


def choose(impl: str, x: Tensor) -> str:
    """The implementation that serves some tokens.

    Args:
        impl: "auto" or one of `IMPLS`.
        x: the tokens [B, N, C].

    Returns:
        One of `IMPLS`.

    Raises:
        ValueError: an unknown name, or one that cannot serve these tokens here.
    """
    impl = registry.current_name(impl)
    names = available_impls(x.device)
    if (
        x.dtype == torch.float64
        or x.shape[1] > MAX_TRITON_TOKENS
        or x.shape[0] > MAX_TRITON_SAMPLES
    ):
        names = [PLAIN]
    elif x.dtype == torch.float32:
        # Without tensor cores arithmetic is what takes the time, and the library's is faster.
        names.sort(key=(PLAIN, TRITON).index)
    if impl == "auto":
        return names[0]
    if impl not in names:
        raise ValueError(
            f"impl={impl!r} cannot serve {x.dtype} {list(x.shape)} on {x.device} here (Triton: "
            f"half and single precision, up to {MAX_TRITON_TOKENS} tokens); what can: auto, "
            f"{', '.join(names)}"
        )
    return impl
