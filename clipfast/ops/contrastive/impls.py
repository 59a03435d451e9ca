"""Who computes the operators of the contrastive loss.

Statistics and gradients exist several times; `choose` says which one serves:

    cpu        csrc/contrastive: blocked GEMM with the epilogue in cache
    cuda       csrc/contrastive: cuBLAS over a chunk, then a fused epilogue; sm_70 and newer
    triton     kernels/contrastive: GEMM with the epilogue fused; sm_80 and newer
    plain      clipfast/ops/contrastive/plain.py: chunked plain torch, on any device

On a GPU "auto" is triton, but for products of fp32 in full: without tensor cores `tl.dot` is a loop
of multiply-adds that reaches a part of the library's rate. 8BGD FLOP are 131 ms for G 32,768 and D
1,024 at an H100's 67 TFLOP/s, by count. The chunks that cuda writes and reads beside them are 20BG
bytes, 7 ms at 3.0 TB/s.
"""

from __future__ import annotations

import functools
import logging
from typing import NamedTuple

import torch
from torch import Tensor

from clipfast.ops import registry
from clipfast.ops.contrastive.declaration import OPERATORS, Operators
from clipfast.ops.extension import load_extension
from clipfast.ops.registry import PLAIN, TRITON
from clipfast.ops.tracing import constant_in_graphs

IMPLS = tuple(OPERATORS)

_EXTENSION = load_extension()
HAS_BFLOAT16_PRODUCT = _EXTENSION is not None and _EXTENSION.has_bfloat16_product
_logger = logging.getLogger("clipfast.loss")


class Choice(NamedTuple):
    """Who computes the loss, and in which type its products are taken."""

    impl: str
    work_dtype: torch.dtype | None  # None: the features as they come


def operators(impl: str) -> Operators:
    """The operators of an implementation that is available here."""
    return OPERATORS[impl]


def available_impls(device: torch.device | str) -> list[str]:
    """Names of the implementations that can serve on a device, best first.

    Args:
        device: where the features are.

    Returns:
        Some of `IMPLS`. Interpreted Triton comes after plain torch: it is there for tests.
    """
    return registry.available_impls("contrastive_statistics", device)


def choose(impl: str, features: Tensor, autocast: bool = False) -> Choice:
    """Pick the implementation and the type of its products.

    Args:
        impl: "auto" or one of `IMPLS`.
        features: [B, D], either side.
        autocast: whether the caller works under autocast.

    Returns:
        The choice. Half-precision features are multiplied as fp16 on a GPU, because normalised
        features are bounded by 1 and fp16 holds three more bits of them than bf16; as bf16 on a CPU
        with instructions for it; as fp32 on others. fp32 features are multiplied as fp32, except
        under autocast on a GPU; there torch's own switch says whether in full or as TF32.

    Raises:
        ValueError: an unknown name, or one that cannot serve this device and type.
    """
    impl = registry.current_name(impl)
    names = available_impls(features.device)
    if impl not in ("auto", *IMPLS):
        raise ValueError(f"impl: expected one of auto, reference, {', '.join(IMPLS)}; got {impl!r}")
    if impl != "auto" and impl not in names:
        raise ValueError(
            f"impl={impl!r} cannot serve {features.device} here; what can: {', '.join(names)}"
        )
    if features.dtype == torch.float64:
        if impl not in ("auto", PLAIN):
            raise ValueError(f"impl={impl!r} has no float64; impl='plain' does")
        return Choice(PLAIN, None)
    name = _best(names, features, autocast) if impl == "auto" else impl
    if not torch.compiler.is_compiling():
        _say_once(impl, name, str(features.device.type), features.dtype)
    return Choice(name, _work_dtype(name, features, autocast))


def _best(names: list[str], features: Tensor, autocast: bool) -> str:
    best = names[0]
    if best == TRITON and "cuda" in names and features.device.type == "cuda":
        in_fp32 = _work_dtype(best, features, autocast) == torch.float32
        return "cuda" if in_fp32 and _multiplies_in_full() else best
    return best


@constant_in_graphs
def _multiplies_in_full() -> bool:
    # A compiled graph is made anew where the switch has moved.
    from clipfast.kernels.common.device import multiplies_in_full

    return multiplies_in_full()


def _work_dtype(impl: str, features: Tensor, autocast: bool) -> torch.dtype | None:
    is_half = features.dtype in (torch.float16, torch.bfloat16)
    if impl in ("cuda", "triton"):
        return torch.float16 if is_half or autocast else torch.float32
    if impl == "cpu" and features.dtype == torch.bfloat16:
        # Products of bfloat16 take two elements at a time.
        return None if HAS_BFLOAT16_PRODUCT and features.shape[1] % 2 == 0 else torch.float32
    return torch.float32 if is_half else None


@functools.cache
def _say_once(asked: str, name: str, device: str, dtype: torch.dtype) -> None:
    _logger.info("contrastive loss: impl=%s is %r for %s on %s", asked, name, dtype, device)
