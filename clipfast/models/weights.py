"""Load and export weights: OpenAI's archives, OpenCLIP's checkpoints, plain state dicts."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from clipfast.models.catalogue import list_models
from clipfast.models.checks import some_of
from clipfast.models.clip import CLIP, create_model
from clipfast.models.published import from_published, to_published, tower_of_state, unwrap
from clipfast.models.weight_files import check_suffix, read_state, write_state

Shapes = dict[str, tuple[int, ...]]


def load_weights(
    model: CLIP, path: str | os.PathLike[str], *, resize_positions: bool = False
) -> None:
    """Fill a model with the weights of a file, cast to the model's dtypes.

    Nothing that the file contains is run: pickles are read by `torch.load(weights_only=True)`,
    TorchScript archives through their tensors alone. The model changes only if everything fits.
    Scalars of an objective (`Architecture.scalars`) that the file lacks keep their value.
    Load before `deepspeed.initialize`: a model that ZeRO-3 has partitioned has no shapes to fill.

    Args:
        model: what to fill; its parameters must have memory (no meta tensors).
        path: OpenAI's TorchScript `.pt`; OpenCLIP's `.pt`, bare or under "state_dict", names
            with or without "module."; a state dict of this package; or `.safetensors`.
        resize_positions: interpolate the image positions (bicubic) where the file was trained at
            another image size, as when ViT-L/14@336px starts from ViT-L/14.

    Raises:
        ValueError: if the file does not exist, cannot be read, or holds no CLIP; or if names or
            shapes differ, with the first of them, how many, and the model they belong to.
    """
    path = Path(path)
    tower = model.tower
    state = from_published(read_state(path), tower)
    target = model.state_dict()
    if any(tensor.is_meta for tensor in target.values()):
        raise ValueError("the model is on the meta device: call model.to_empty(device=...) first")
    if resize_positions:
        for position in tower.positions:
            name = f"visual.{position}"
            if name in state and name in target:
                state[name] = tower.resize(state[name], tuple(target[name].shape))
    for name, _ in model.config.scalars:
        state.setdefault(name, target[name])
    _check(model, path, _shapes(state), _shapes(target))
    model.load_state_dict(state)


def export(
    model_or_state_dict: nn.Module | Mapping[str, Tensor], path: str | os.PathLike[str]
) -> None:
    """Write weights under the names that OpenCLIP and OpenAI use, `logit_scale` with shape [].

    The file appears whole or not at all: it is written under a temporary name beside `path`,
    then renamed.

    Args:
        model_or_state_dict: a CLIP model, or its state dict (names with or without "module.");
            parameters that ZeRO-3 has partitioned must be gathered first.
        path: where to write; `.pt` gives a plain state dict, `.safetensors` that format.

    Raises:
        ValueError: for another suffix, or if this is not the state of a whole CLIP model.
        OSError: if the file cannot be written.
    """
    path = Path(path)
    check_suffix(path)
    given = model_or_state_dict
    state = unwrap(given.state_dict() if isinstance(given, nn.Module) else given)
    _check_complete(state)
    write_state(to_published(state), path)


def _check_complete(state: dict[str, Any]) -> None:
    wanted = ("logit_scale", "text_projection", "token_embedding.weight")
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


def _shapes(state: Mapping[str, Tensor]) -> Shapes:
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


def _check(model: CLIP, path: Path, given: Shapes, wanted: Shapes) -> None:
    if given == wanted:
        return
    if not given.keys() & wanted.keys():
        raise ValueError(f"{path} holds no CLIP weights: its names are {some_of(given)}")
    missing = [name for name in wanted if name not in given]
    unexpected = [name for name in given if name not in wanted]
    differing = [
        f"{name} is {list(given[name])} in the file, {list(wanted[name])} in the model"
        for name in wanted
        if name in given and given[name] != wanted[name]
    ]
    problems = [
        f"{len(items)} {what}: {some_of(items)}"
        for what, items in (
            ("missing", missing),
            ("unexpected", unexpected),
            ("of another shape", differing),
        )
        if items
    ]
    raise ValueError(
        f"{path} does not fit {model.config.name}. {'; '.join(problems)}. {_identify(given)}"
    )


def _identify(given: Shapes) -> str:
    """A sentence that names the model whose parameters have these names and shapes."""
    items = set(given.items())
    scores: dict[str, float] = {}
    for name in list_models():
        with torch.device("meta"):
            own = set(_shapes(create_model(name).state_dict()).items())
        scores[name] = len(items & own) / len(items | own)
    best = max(scores, key=scores.__getitem__)
    if scores[best] == 1.0:
        return f"The file's shapes are those of {best!r}: use create_model({best!r})."
    if scores[best] >= 0.5:
        return f"The nearest model is {best!r}, with {scores[best]:.0%} of the shapes."
    return "Its shapes are near those of no model in list_models()."
