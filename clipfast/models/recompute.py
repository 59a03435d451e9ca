"""What a residual block keeps for the backward pass, and what it computes a second time.

    mode        kept of a block                                  computed again
    none        whatever autograd saves                          nothing
    selective   its input, what matrix products, convolutions    norms, activations, residual sums,
                and attention gave, batch statistics             expanding 1x1 convolutions
    full        its input                                        the block

Gradients are the same bits in each mode: the second run repeats the first one's operations on the
same numbers, under `frozen_statistics()`, so that batch norm counts a batch once.

Which products stay is a matter of what a byte costs. A bottleneck's last convolution (1x1, c to 4c
channels) is 4/17 of its multiplications and 4/6 of the bytes that its convolutions give: it runs
again. A product that narrows (the MLP's second, 4C to C) ends in a residual sum, which needs none
of its terms in the backward pass: it is neither kept nor run again, since recomputation stops once
all that was saved is there.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from torch.utils.checkpoint import checkpoint

from clipfast.models.batch_norm import frozen_statistics

# How blocks run that `clipfast.models.compile` has marked, by their mark. A copy of a model in
# another process keeps the marks, finds nothing here, and runs as it is.
compiled_runs: dict[Any, Callable[..., Tensor]] = {}

Mode = Literal["none", "selective", "full"]
# From the fastest to the smallest.
MODES: tuple[Mode, ...] = get_args(Mode)
# "auto" is turned into one of them by what knows the memory that is free.
Recompute = Literal["none", "selective", "full", "auto"]

_PRODUCTS = {"aten::mm", "aten::addmm"}
_LINEAR = "clipfast::linear"
_CONVOLUTION = "aten::convolution"
_OTHERS_KEPT = {
    "aten::_scaled_dot_product_flash_attention_for_cpu",
    "aten::_scaled_dot_product_flash_attention",
    "aten::_scaled_dot_product_efficient_attention",
    "aten::_scaled_dot_product_cudnn_attention",
    "torch_attn::_varlen_attn",
    "clipfast::batch_norm_statistics",
    # Sums of statistics over ranks: what was agreed on is not asked for again.
    "_c10d_functional::all_reduce",
    "_c10d_functional::wait_tensor",
}


def run_block(block: nn.Module, x: Tensor, mode: str, **kwargs: Any) -> Tensor:
    """y = block(x), keeping for the backward pass what the mode says.

    Args:
        block: a residual block without dropout.
        x: its input.
        mode: "none", "selective" or "full"; without a graph, or in eval mode, it makes no
            difference.
        kwargs: further arguments of the block.

    Returns:
        What the block returns.
    """
    run = compiled_runs.get(getattr(block, "compiled_as", None)) if block.training else None
    return (run or run_eagerly)(block, x, mode, **kwargs)


def run_eagerly(block: Callable[..., Tensor], x: Tensor, mode: str, **kwargs: Any) -> Tensor:
    """`run_block` without looking for compiled code; itself code that can be compiled.

    Args:
        block: see `run_block`, or a function that stands for it.
        x: see `run_block`.
        mode: see `run_block`.
        kwargs: see `run_block`.

    Returns:
        What the block returns.
    """
    is_training = getattr(block, "training", True)
    if mode == "none" or not (is_training and torch.is_grad_enabled()):
        return block(x, **kwargs)
    assert mode in ("selective", "full"), mode
    if not torch.compiler.is_compiling():
        # A compiled graph updates the statistics once, outside what it recomputes. What it keeps
        # of the rest is its partitioner's choice: there the selective mode changes nothing.
        kwargs["context_fn"] = _full_contexts if mode == "full" else _selective_contexts
    elif mode == "selective":
        return block(x, **kwargs)
    return checkpoint(block, x, use_reentrant=False, preserve_rng_state=False, **kwargs)


def _full_contexts() -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
    return nullcontext(), _HeldStill()


def _selective_contexts() -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
    held: deque[tuple[Any, Any]] = deque()
    return _Keep(held), _Replay(held)


def is_kept(func: Any, args: tuple[Any, ...]) -> bool:
    """Whether the selective mode keeps what an operator returns.

    Args:
        func: an operator's overload.
        args: its positional arguments.

    Returns:
        True where the result stays until the backward pass.
    """
    name = func._schema.name
    if name in _PRODUCTS:
        inner, columns = args[-1].shape
        return columns >= inner
    if name == _LINEAR:
        columns, inner = args[1].shape
        return columns >= inner
    if name == _CONVOLUTION:
        channels, in_channels, *kernel = args[1].shape
        return channels <= in_channels or max(kernel) > 1
    return name in _OTHERS_KEPT


class _HeldStill:
    """`frozen_statistics()` that can be entered again, by a second backward pass."""

    def __enter__(self) -> None:
        self._context = frozen_statistics()
        self._context.__enter__()

    def __exit__(self, *error: Any) -> None:
        self._context.__exit__(*error)


class _Keep(TorchDispatchMode):
    """Hold on to the results that the second run will not compute.

    torch's own pair of modes for this refuses a second run whose other operators differ from the
    first one's, as those of a batch norm with frozen statistics do.
    """

    def __init__(self, held: deque[tuple[Any, Any]]) -> None:
        super().__init__()
        self.held = held

    @classmethod
    def ignore_compile_internals(cls) -> bool:
        """Let compiled code inside run as it is."""
        return True

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if is_kept(func, args):
            # Detached: autograd gives `out` itself a history, which would hold the block's graph.
            self.held.append((func, tree_map_only(Tensor, Tensor.detach, out)))
        return out


class _Replay(_Keep):
    """Give the held results, in their order, instead of computing them."""

    def __enter__(self) -> _Replay:
        self._still = _HeldStill()
        self._still.__enter__()
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        # Recomputation stops early: what lies behind is needed by nobody.
        self.held.clear()
        super().__exit__(*error)
        self._still.__exit__(*error)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not is_kept(func, args):
            return func(*args, **(kwargs or {}))
        if not self.held:
            raise RuntimeError(
                "recompute='selective' holds a block's products for one backward pass: a second "
                "one through the same graph needs recompute='full' or 'none'"
            )
        before, out = self.held.popleft()
        assert before is func, f"the second run of a block calls {func}, the first {before}"
        return out
