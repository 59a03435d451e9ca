"""Whether the tensors of a file are those of a model, and which model they are of otherwise."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from clipfast.models.architecture import Architecture
from clipfast.models.catalogue import get_config, list_models
from clipfast.models.checks import some_of
from clipfast.models.clip import CLIP
from clipfast.models.families import family_of
from clipfast.models.metadata import WeightsMetadata
from clipfast.models.published import from_published
from clipfast.models.towers import tower_of

# Of numbers that mean something without a scale beside them.
WEIGHT_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)

State = Mapping[str, Tensor]
_Items = set[tuple[str, tuple[int, ...]]]


def as_here(
    state: State, architecture: Architecture, target: State, resize_positions: bool
) -> dict[str, Tensor]:
    """A file's tensors under the names of a model here.

    Args:
        state: as the file holds them.
        architecture: of the model.
        target: the model's own tensors, on any device.
        resize_positions: interpolate the image positions to the shapes in `target`.

    Returns:
        The tensors; scalars of the objective that the file lacks are those of `target`.
    """
    tower = tower_of(architecture.vision)
    here = from_published(state, tower)
    here = {_without_wrapper(name, target): tensor for name, tensor in here.items()}
    if resize_positions:
        for position in tower.positions:
            name = f"visual.{position}"
            if name in here and name in target and _is_kind(here[name].dtype, torch.float32):
                here[name] = tower.resize(here[name], tuple(target[name].shape))
    for name, _ in architecture.scalars:
        here.setdefault(name, target[name])
    return here


def _without_wrapper(name: str, target: State) -> str:
    """A name without the "module." of a part that was wrapped by itself, as by DDP."""
    if name in target or ".module." not in name:
        return name
    plain = name.replace(".module.", ".")
    return plain if plain in target else name


def check_tensors(
    given: State,
    wanted: State,
    architecture: Architecture,
    path: Path,
    found: WeightsMetadata | None,
    origin: str = "",
) -> None:
    """Refuse tensors of other names, shapes or kinds than a model has.

    Args:
        given: of the file, under the names of a model here.
        wanted: of the model.
        architecture: of the model.
        path: the file, for messages.
        found: what the file says of itself.
        origin: of names that were translated; empty where none were.

    Raises:
        ValueError: they differ, with the first few, how many, and the model they belong to.
    """
    common = given.keys() & wanted.keys()
    if not common:
        names = some_of(name[:99] for name in given)
        kind = _family_sentence(given, wanted)
        raise ValueError(f"{path} holds no CLIP weights: its names are {names}{kind}")
    problems = {
        "missing": [name for name in wanted if name not in given],
        "unexpected": [name for name in given if name not in wanted],
        "of another shape": [
            f"{name} is {list(given[name].shape)} in the file, {list(wanted[name].shape)} in the "
            "model"
            for name in wanted
            if name in common and given[name].shape != wanted[name].shape
        ],
        # Integers of a quantised file are no weights without their scales.
        "of another kind": [
            f"{name} is {given[name].dtype} in the file, {wanted[name].dtype} in the model"
            for name in wanted
            if name in common and not _is_kind(given[name].dtype, wanted[name].dtype)
        ],
    }
    if any(problems.values()):
        text = "; ".join(
            f"{len(i)} {what}: {some_of(n[:200] for n in i)}" for what, i in problems.items() if i
        )
        whose = _nearest_sentence(given) if found is None else _said(found, path)
        if origin:
            whose += f" Its names were read as those of {origin}."
        if part := re.search(r"-0*(\d+)-of-0*(\d+)\.", path.name):
            whose += f" By its name it is part {part[1]} of {part[2]}: name the .index.json of all."
        kind = _family_sentence(given, wanted)
        raise ValueError(f"{path} does not fit {architecture.name}{kind}. {text}. {whose}")


def nearest_model(state: State) -> tuple[str, float]:
    """The model in `list_models()` whose tensors are most like those of a file.

    Args:
        state: as the file holds them, or under the names of a model here.

    Returns:
        Its name, and the share of tensors with the same name and shape, from 0 to 1. Numbers of
        an objective are left out.
    """
    shares: dict[str, float] = {}
    for name in list_models():
        config = get_config(name)
        own = _items(on_meta(config).state_dict())
        given = _items(from_published(state, tower_of(config.vision)))
        shares[name] = len(given & own) / len(given | own)
    best = max(shares, key=shares.__getitem__)
    return best, shares[best]


def on_meta(architecture: Architecture) -> CLIP:
    """A model without memory, for its names and shapes."""
    with torch.device("meta"):
        return CLIP(architecture)


def extra_scalars(state: State) -> dict[str, float]:
    """The numbers beside `logit_scale` in a state dict under the names of a model here."""
    return {name: tensor.item() for name, tensor in state.items() if _is_extra(name, tensor)}


def _is_kind(given: torch.dtype, wanted: torch.dtype) -> bool:
    """Whether numbers of one type can be those of another: float8 and int8 want scales."""
    if wanted.is_floating_point:
        return given in WEIGHT_DTYPES
    return given == wanted or (given != torch.bool and not given.is_floating_point)


def _is_extra(name: str, tensor: Tensor) -> bool:
    return "." not in name and tensor.numel() == 1 and name != "logit_scale"


def _items(state: State) -> _Items:
    return {(name, tuple(t.shape)) for name, t in state.items() if not _is_extra(name, t)}


def _family_sentence(given: State, wanted: State) -> str:
    family = family_of(given, wanted)
    return f". It is {family}" if family else ""


def _nearest_sentence(given: State) -> str:
    best, share = nearest_model(given)
    if share == 1.0:
        return f"The file's shapes are those of {best!r}: use create_model({best!r})."
    if share >= 0.5:
        return f"The nearest model is {best!r}, with {share:.0%} of the shapes."
    return "Its shapes are near those of no model in list_models()."


def _said(found: WeightsMetadata, path: Path) -> str:
    return (
        f"The file says that it is of {found.model!r}: create_model.from_file({str(path)!r}) "
        "builds its model."
    )
