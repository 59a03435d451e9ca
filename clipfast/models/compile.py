"""`torch.compile` of residual blocks, one by one.

A tower is the same few blocks over and over. Compiled as a whole it takes minutes and starts again
for a change anywhere; compiled block by block, equal blocks share one piece of code: two graphs
serve a transformer however deep it is (its last block computes less), eight a ResNet.

Blocks of images have fixed shapes. Those of the text tower have as many rows as the batch's
captions have tokens, which differs from batch to batch: that dimension is left open, so that one
graph serves all. Blocks in eval mode run as they are: batches there come in any size.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from clipfast.models.clip import CLIP
from clipfast.models.recompute import compiled_runs, run_eagerly
from clipfast.models.towers import registered_towers

# Graphs of one function before torch stops compiling it: a ResNet has eight shapes of bottlenecks,
# each with a graph for gradients, one without, and one for held statistics.
_MOST_GRAPHS = 64


def compile_blocks(model: nn.Module, backend: str = "inductor") -> nn.Module:
    """Compile every residual block of a model, in place.

    Parameters, their names, hooks and the state dict stay. Compilation itself happens when a block
    first runs. It goes with recomputation "none" and "full": inside a graph the compiler chooses
    what to keep, and in "selective" mode that would be as much as in "none".

    Args:
        model: a CLIP, or a part of its image tower.
        backend: of `torch.compile`; "aot_eager" traces without generating code, for tests.

    Returns:
        The same model.

    Raises:
        ValueError: there is no residual block in it, or it was built with recompute="selective".
    """
    if any(getattr(module, "recompute", None) == "selective" for module in model.modules()):
        raise ValueError(
            "recompute='selective' keeps no less in compiled blocks: build the model with "
            "recompute='none' or 'full'"
        )
    text_blocks = set(model.transformer.resblocks) if isinstance(model, CLIP) else set()
    towers = [model.tower] if isinstance(model, CLIP) else registered_towers()
    kinds = {
        block: "recomputing" if tower.recomputes_in_graph else "image"
        for tower in towers
        for block in tower.blocks
    }
    found = 0
    for module in model.modules():
        kind = next((kind for block, kind in kinds.items() if isinstance(module, block)), None)
        if module in text_blocks:
            kind = "text"
        if kind is not None:
            found += 1
            setattr(module, "compiled_as", (kind, backend))  # noqa: B010
            compiled_runs.setdefault((kind, backend), _compiled_run(kind, backend))
    if not found:
        raise ValueError(
            f"{type(model).__name__} has no residual block to compile: pass a model of "
            "clipfast.create_model, whose image tower was registered with its blocks"
        )
    return model


def _compiled_run(kind: str, backend: str) -> Callable[..., Tensor]:
    if kind == "recomputing":
        return _compile(run_eagerly, backend, dynamic=False)
    if kind == "image":
        compiled = _compile(_call_image, backend, dynamic=False)
        return functools.partial(_run_attention, compiled, False)
    # Not only what is marked: behind a break in the graph, rows are open from the second batch on.
    return functools.partial(_run_attention, _compile(_call_text, backend, dynamic=None), True)


def _run_attention(
    compiled: Callable[..., Tensor],
    is_text: bool,
    block: nn.Module,
    x: Tensor,
    mode: str,
    **kwargs: Any,
) -> Tensor:
    """Recomputation around the graph: the plan of grouped captions breaks it in several, which a
    checkpoint inside cannot hold."""

    def call(x: Tensor, **kwargs: Any) -> Tensor:
        if is_text:
            torch._dynamo.maybe_mark_dynamic(x, 0)
            torch._dynamo.mark_static(x, 1)
        return compiled(block, x, **kwargs)

    return run_eagerly(call, x, "full" if mode == "full" else "none", **kwargs)


# Two functions: torch keeps graphs, and what it knows about their shapes, by a function's code.
def _call_image(block: nn.Module, x: Tensor, **kwargs: Any) -> Tensor:
    return block(x, **kwargs)


def _call_text(block: nn.Module, x: Tensor, **kwargs: Any) -> Tensor:
    return block(x, **kwargs)


def _compile(
    function: Callable[..., Tensor], backend: str, dynamic: bool | None
) -> Callable[..., Tensor]:
    options: dict[str, Any] = {}
    if "recompile_limit" in inspect.signature(torch.compile).parameters:
        options["recompile_limit"] = _MOST_GRAPHS
    else:
        # Older torch knows the limit for the whole process alone.
        config = torch._dynamo.config
        config.cache_size_limit = max(config.cache_size_limit, _MOST_GRAPHS)
    return torch.compile(function, backend=backend, dynamic=dynamic, **options)
