"""Whether what is to be exported is the whole state of a CLIP model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from clipfast.arguments import WrongKindError, shown
from clipfast.models.architecture import Architecture
from clipfast.models.checks import some_of
from clipfast.models.fitting import WEIGHT_DTYPES, on_meta
from clipfast.models.published import tower_of_state

_WANTED = ("logit_scale",)
_WANTED_OF_TEXT = ("text_projection", "token_embedding.weight")


def tensors_of(given: Any) -> Mapping[str, Tensor]:
    """The tensors of a model, or of a state dict.

    Args:
        given: what the caller of `export` brought.

    Raises:
        WrongKindError: it is neither.
        ValueError: a tensor cannot be in a file of weights.
    """
    state = given.state_dict() if isinstance(given, nn.Module) else given
    if not isinstance(state, Mapping):
        raise WrongKindError(f"export takes a model or its state dict; got {shown(given)}")
    for name, tensor in state.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise WrongKindError(
                f"a state dict holds tensors by name; got {shown(tensor)} under {name!r}. Pass "
                "the model's own state_dict(), not what else a checkpoint holds"
            )
    return state


def check_complete(state: Mapping[str, Tensor], architecture: Architecture | None) -> None:
    """Refuse a state that lacks a part of a CLIP model, or the values of a tensor.

    Args:
        state: unwrapped names.
        architecture: of the model, where it is known.

    Raises:
        ValueError: it does, with what is missing.
    """
    has_text = architecture is None or architecture.text is not None
    wanted = (*_WANTED, *_WANTED_OF_TEXT) if has_text else _WANTED
    missing = [name for name in wanted if name not in state]
    if tower_of_state(state) is None:
        missing.append("an image tower `visual` that register_tower knows")
    if missing:
        raise ValueError(f"not the state of a CLIP model: it lacks {', '.join(missing)}")
    hollow = [n for n, t in state.items() if t.is_meta or t.numel() == 0]
    if hollow:
        raise ValueError(
            f"{len(hollow)} tensors hold no values ({some_of(hollow)}): gather partitioned "
            "parameters before the export"
        )
    odd = [
        f"{name} ({tensor.dtype}, {tensor.layout})"
        for name, tensor in state.items()
        if tensor.layout != torch.strided or not _is_weight(name, tensor)
    ]
    if odd:
        raise ValueError(
            f"{len(odd)} tensors are no weights: {some_of(odd)}; export dense floats of 16 bits or "
            "more"
        )


def check_fits(state: Mapping[str, Tensor], architecture: Architecture) -> None:
    """Refuse a state that is another architecture's than the file would say.

    Args:
        state: unwrapped names.
        architecture: what the caller said it is of.

    Raises:
        ValueError: a name is missing or too many, or a shape differs.
    """
    wanted = on_meta(replace(architecture, recompute="none")).state_dict()
    scalars = {name for name, _ in architecture.scalars}
    problems = {
        "missing": [name for name in wanted if name not in state and name not in scalars],
        "unexpected": [name for name in state if name not in wanted],
        "of another shape": [
            f"{name} {list(state[name].shape)} instead of {list(wanted[name].shape)}"
            for name in wanted
            if name in state
            and state[name].shape != wanted[name].shape
            and not state[name].numel() == wanted[name].numel() == 1
        ],
    }
    told = [f"{len(names)} {what} ({some_of(names)})" for what, names in problems.items() if names]
    if told:
        raise ValueError(
            f"the state is not that of architecture {architecture.name}: {'; '.join(told)}"
        )


def _is_weight(name: str, tensor: Tensor) -> bool:
    return tensor.dtype in WEIGHT_DTYPES or name.endswith("num_batches_tracked")
