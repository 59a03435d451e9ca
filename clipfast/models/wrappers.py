"""Where in a file's object the state dict lies: what training programs wrap around it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from clipfast.models.inert import Odd, View

_DEEPEST = 4
# What stands beside weights, and looks like them: statistics of an optimizer bear their names.
_BESIDE = re.compile(
    r"optim|sched|scaler|rng|callback|loops|hyper|grad|exp_avg|loss", re.IGNORECASE
)
_NAMES = ("logit_scale", "token_embedding.weight", "class_embedding", "conv1.weight")
_SINGLE = ("state_dict", "model_state_dict", "model", "module")

_ZERO = (
    "it is a part of a DeepSpeed checkpoint: run its zero_to_fp32.py on the folder, "
    "`python zero_to_fp32.py FOLDER OUTPUT`, and name OUTPUT"
)


def find_state(content: Any, path: Path) -> Mapping[Any, Any]:
    """The state dict in what a file holds.

    Args:
        content: inert objects, or tensors by name.
        path: the file, for messages.

    Returns:
        The mapping from names to tensors; where nothing looks like one, what stands under
        "state_dict", "model" or "module", or the object itself.

    Raises:
        ValueError: it is no mapping, an optimizer's state alone, or several sets of weights.
    """
    if not isinstance(content, Mapping) or not content:
        raise ValueError(f"{path} holds a {_type_name(content)}, not a state dict")
    if looks_like_weights(content):
        return content
    found = list(_inside(content, (), set()))
    distinct = [(where, state) for i, (where, state) in enumerate(found)
                if not any(state == before for _, before in found[:i])]  # fmt: skip
    if len(distinct) > 1:
        places = [".".join(where)[:60] for where, _ in distinct]
        raise ValueError(
            f"{path} holds several sets of weights, under {', '.join(map(repr, places))}: write "
            "one of them to a file of its own, such as torch.save(torch.load(path, "
            f"weights_only=True){_subscript(distinct[-1][0])}, 'weights.pt')"
        )
    if distinct:
        state = distinct[0][1]
        _check_zero(content, state, path)
        return state
    _check_other(content, path)
    single = (content[key] for key in _SINGLE if isinstance(content.get(key), Mapping))
    return next(single, content)


def looks_like_weights(state: Mapping[Any, Any]) -> bool:
    """Whether tensors of a CLIP, or of something near to one, stand directly in a mapping."""
    return any(
        isinstance(name, str) and name.endswith(_NAMES) and isinstance(leaf, View | Odd | Tensor)
        for name, leaf in state.items()
    )


def _inside(
    content: Mapping[Any, Any], where: tuple[str, ...], seen: set[int]
) -> Iterator[tuple[tuple[str, ...], Mapping[Any, Any]]]:
    if id(content) in seen or len(where) > _DEEPEST:
        return
    seen.add(id(content))
    for key, value in content.items():
        if not isinstance(key, str) or not isinstance(value, Mapping) or _BESIDE.search(key):
            continue
        if looks_like_weights(value):
            yield (*where, key), value
        else:
            yield from _inside(value, (*where, key), seen)


def _check_zero(content: Mapping[Any, Any], state: Mapping[Any, Any], path: Path) -> None:
    """Refuse the part of a rank at ZeRO stage 3, whose tensors are empty."""
    if "ds_version" in content and any(0 in _size(leaf) for leaf in state.values()):
        raise ValueError(f"no weights at {path}: {_ZERO}")


def _check_other(content: Mapping[Any, Any], path: Path) -> None:
    if content.keys() >= {"state", "param_groups"}:
        raise ValueError(f"no weights at {path}: it is an optimizer's state alone")
    if "optimizer_state_dict" in content and content.keys() & {"ds_version", "ds_config"}:
        raise ValueError(f"no weights at {path}: {_ZERO}")


def _size(leaf: Any) -> tuple[int, ...]:
    return leaf.size if isinstance(leaf, View) else tuple(getattr(leaf, "shape", ()))


def _subscript(where: tuple[str, ...]) -> str:
    return "".join(f"[{key[:60]!r}]" for key in where)


def _type_name(content: Any) -> str:
    names = {"Ordered": "dict", "View": "Tensor", "Settings": "object of settings"}
    return names.get(type(content).__name__, type(content).__name__)
