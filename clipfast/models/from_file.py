"""A model built for a file of weights, whatever the file is of."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from clipfast.models import weight_files
from clipfast.models.architecture import Architecture
from clipfast.models.catalogue import get_config
from clipfast.models.clip import CLIP, create_model
from clipfast.models.fitting import as_here, check_tensors, extra_scalars, nearest_model, on_meta
from clipfast.models.layers import ACTIVATIONS
from clipfast.models.metadata import Value, WeightsMetadata
from clipfast.models.published import from_published
from clipfast.models.towers import tower_of
from clipfast.models.trained_with import Said, check_activation, warn_assumed
from clipfast.models.weights import fill, said_activation


def create_model_from_file(
    path: str | os.PathLike[str], *, allow_nonfinite: bool = False, **overrides: Any
) -> CLIP:
    """The model that a file of weights is of, filled with them. Also `create_model.from_file`.

    What the file says of itself decides (`read_metadata`). Where it says nothing, the shapes of its
    tensors do: they must be those of a model in `list_models()`. A configuration beside the file
    gives the activation (`load_weights`), or `activation=` does.

    Args:
        path: as `load_weights` takes it.
        allow_nonfinite: see `load_weights`.
        overrides: as `create_model` takes them, such as `recompute="full"`. With another
            `image_size` the positions are interpolated.

    Returns:
        The model in training mode, fp32, on the default device.

    Raises:
        ValueError: the file cannot be read, its model is not known here, or it does not fit.
    """
    path = Path(path)
    found, contents = weight_files.read_metadata(path), weight_files.read_contents(path)
    state = contents.state
    said = said_activation(path, contents, found, overrides.get("activation"))
    config = _from_shapes(path, state) if found is None else _from_metadata(path, found, state)
    config = _with_activation(config, said).override(**overrides)
    check_activation(said, config, path)
    resized = "image_size" in overrides
    # Nothing is allocated before the file has proved to hold as much.
    wanted = _build(path, config).state_dict()
    given = as_here(state, config, wanted, resized)
    check_tensors(given, wanted, config, path, found, contents.origin)
    model = CLIP(config)
    fill(
        model,
        path,
        contents,
        found,
        resize_positions=resized,
        allow_nonfinite=allow_nonfinite,
    )
    if said is None:
        warn_assumed(config, path)
    return model


# `create_model` lies below what reads files, and people look for this function there.
setattr(create_model, "from_file", create_model_from_file)  # noqa: B010


def _from_metadata(path: Path, found: WeightsMetadata, state: Mapping[str, Tensor]) -> Architecture:
    try:
        # Each block has a tensor at least: a file cannot ask for more of them than it holds.
        blocks = sum(_total(v) for n, v in found.architecture.items() if n.endswith("layers"))
        if blocks > len(state):
            raise ValueError(f"it claims {blocks:,} blocks and holds {len(state):,} tensors")
        config = get_config(found.model)
        fields = {n: v for n, v in found.architecture.items() if n in config.flat()}
        return config.override(**fields, scalars=tuple(found.scalars.items()))
    except (ValueError, TypeError, ArithmeticError) as error:
        raise ValueError(
            f"{path} says that it is of {found.model[:99]!r}, which cannot be built here: {error}. "
            "A model of your own must be registered first (clipfast.models.register_model)"
        ) from error


def _from_shapes(path: Path, state: Mapping[str, Tensor]) -> Architecture:
    best, share = nearest_model(state)
    if share < 1.0:
        raise ValueError(
            f"{path} does not say which model it is of, and its shapes are those of none in "
            f"list_models(); the nearest is {best!r}, with {share:.0%} of them. Build the model "
            "with create_model and its overrides, then call load_weights"
        )
    config = get_config(best)
    scalars = extra_scalars(from_published(state, tower_of(config.vision)))
    return config.override(scalars=tuple(scalars.items()))


def _with_activation(config: Architecture, said: Said | None) -> Architecture:
    known = next((name for name in ACTIVATIONS if said and said.activation == name), None)
    return config if known is None else replace(config, activation=known)


def _build(path: Path, config: Architecture) -> CLIP:
    try:
        return on_meta(config)
    except Exception as error:  # what a stranger describes can raise nearly anything
        raise ValueError(f"{path} describes a model that cannot exist: {error}") from error


def _total(value: Value) -> int:
    if isinstance(value, tuple):
        return sum(_total(item) for item in value)
    return value if isinstance(value, int) else 0
