"""Compares clipfast's form of a part of an OpenCLIP model with OpenCLIP's own, by numbers.

A structure that is known says little about an option of OpenCLIP's next version. So a part is
replaced only where outputs and gradients are the same on random weights: a twin of the part, with
its first and its last block alone, in float64 on the CPU, whatever device the model is on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from clipfast.integrations import open_clip_rules as rules
from clipfast.integrations.patching import Patched, own_class

# A norm in float32, as models in half precision have them, rounds by 1e-7. What is another
# function differs by a tenth or more.
_TOLERANCE = 1e-4
_HOOKS = (
    *("_forward_hooks", "_forward_pre_hooks", "_forward_hooks_with_kwargs"),
    *("_forward_pre_hooks_with_kwargs", "_forward_hooks_always_called"),
    *("_backward_hooks", "_backward_pre_hooks", "_state_dict_hooks", "_state_dict_pre_hooks"),
    *("_load_state_dict_pre_hooks", "_load_state_dict_post_hooks"),
)
_TOKENS, _CAPTIONS = 32, 4

Swaps = list[tuple[nn.Module, type[Patched]]]


def probe(module: nn.Module, swaps: Swaps, make_input: Callable[[Any], Tensor]) -> str | None:
    """Run a part as it is and as it would be.

    Args:
        module: the part of the model; it is not touched.
        swaps: what would be put before which class: of the part itself and of its blocks.
        make_input: gives an input for the twin.

    Returns:
        The reason why the two differ, or None.
    """
    by = {own_class(each): kind for each, kind in swaps}
    try:
        with _exact():
            twin = _twin(module, {})
            x = make_input(twin)
            expected = _run(twin, x, by[own_class(module)])
            for each in twin.modules():
                if type(each) in by:
                    by[type(each)].install(each)
            difference = _difference(_run(twin, x, by[own_class(module)]), expected)
    except Exception as error:  # whatever a version unknown here raises, the run goes on
        return f"it could not be compared with OpenCLIP's own ({type(error).__name__}: {error})"
    if difference <= _TOLERANCE:
        return None
    return (
        f"it computes something else than OpenCLIP's of the versions known here ({difference:.1g})"
    )


def images(visual: Any) -> Tensor:
    """Two images for a vision transformer."""
    size = visual.image_size
    height, width = (size, size) if isinstance(size, int) else size
    return torch.randn(2, 3, height, width, dtype=torch.float64)


def feature_maps(pool: Any) -> Tensor:
    """Two feature maps for an attention pool."""
    tokens, width = pool.positional_embedding.shape
    side = round((tokens - 1) ** 0.5)
    return torch.randn(2, width, side, side, dtype=torch.float64)


def captions(tower: Any) -> Tensor:
    """Captions of several lengths for a text tower, with something behind their ends."""
    length = len(tower.positional_embedding)
    known = min(_TOKENS, len(tower.token_embedding.weight))
    pool_type, eos_id = rules.text_pooling(tower)
    tokens = torch.randint(0, known - 1, (_CAPTIONS, length))
    ends = torch.tensor([0, length // 2, length // 3, length - 1])
    tokens[torch.arange(_CAPTIONS), ends] = eos_id if pool_type == "eos" else known - 1
    return tokens


def _run(twin: Any, x: Tensor, kind: type[Patched]) -> list[Tensor]:
    """The output, and the gradients of all parameters from fixed ones of the output."""
    torch.manual_seed(0)  # what is dropped at random is the same both times
    method = next(name for name in ("_encode_text", "encode_text", "forward") if name in vars(kind))
    output = getattr(twin, method)(x)
    parameters = [p for p in twin.parameters() if p.requires_grad]
    generator = torch.Generator().manual_seed(1)
    total = (output * torch.randn(output.shape, generator=generator, dtype=output.dtype)).sum()
    gradients = torch.autograd.grad(total, parameters, allow_unused=True, materialize_grads=True)
    return [output.detach(), *gradients]


def _difference(actual: list[Tensor], expected: list[Tensor]) -> float:
    """The largest difference of the outputs and of the gradients, by the largest of each."""
    worst = 0.0
    for pairs in ([(actual[0], expected[0])], list(zip(actual[1:], expected[1:], strict=True))):
        if any(a.shape != b.shape for a, b in pairs):
            return torch.inf
        largest = max(b.norm().item() for _, b in pairs)
        worst = max(worst, *((a - b).norm().item() / largest for a, b in pairs))
    return worst


@contextmanager
def _exact() -> Iterator[None]:
    with (
        torch.random.fork_rng(devices=[]),
        torch.inference_mode(False),
        torch.enable_grad(),
        torch.device("cpu"),
        torch.autocast("cpu", enabled=False),
    ):
        torch.manual_seed(0)
        yield


def _twin(module: nn.Module, memo: dict[int, Any]) -> Any:
    """The same structure around random weights; nothing of the model is copied or changed.

    The image tower of a `CLIP` is left out, as are blocks between the first and the last.
    """
    if id(module) in memo:
        return memo[id(module)]
    twin: Any = object.__new__(own_class(module))
    memo[id(module)] = twin
    held = twin.__dict__
    held.update(module.__dict__)
    for name in _HOOKS:
        if name in held:
            held[name] = type(held[name])()
    is_embedding = isinstance(module, nn.Embedding)
    make = _random_embedding if is_embedding else _random
    for kind, of in (("_parameters", make), ("_buffers", _plain)):
        tensors = module.__dict__[kind]
        held[kind] = {name: None if t is None else of(t, memo) for name, t in tensors.items()}
    children = dict(module._modules)
    if "transformer" in children:
        children.pop("visual", None)
    if isinstance(module, nn.ModuleList) and len(module) > 2:
        children = {"0": module[0], "1": module[-1]}
    held["_modules"] = {k: None if m is None else _twin(m, memo) for k, m in children.items()}
    return twin


def _random(parameter: Tensor, memo: dict[int, Any]) -> Tensor:
    if id(parameter) not in memo:
        if not parameter.is_floating_point():
            return parameter
        fan_in = max(1, parameter.numel() // max(1, len(parameter))) if parameter.ndim > 1 else 1
        values = torch.randn(parameter.shape, dtype=torch.float64) * fan_in**-0.5
        memo[id(parameter)] = nn.Parameter(values)
    random: Tensor = memo[id(parameter)]
    return random


def _random_embedding(parameter: Tensor, memo: dict[int, Any]) -> Tensor:
    """Random rows for the first tokens and for the last one; memory of the rest is not touched."""
    if id(parameter) not in memo:
        values = torch.from_numpy(np.zeros(tuple(parameter.shape)))
        values[:_TOKENS] = torch.randn(min(_TOKENS, len(values)), values.shape[1]).double()
        memo[id(parameter)] = nn.Parameter(values, requires_grad=False)
    random: Tensor = memo[id(parameter)]
    return random


def _plain(buffer: Tensor, memo: dict[int, Any]) -> Tensor:
    """A buffer's values; those of one without memory are taken for a causal mask."""
    if buffer.is_meta:
        return torch.full(buffer.shape, -torch.inf, dtype=torch.float64).triu(1)
    values = buffer.detach().to("cpu")
    return values.double() if values.is_floating_point() else values
