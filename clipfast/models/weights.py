"""Load and export weights: OpenAI's archives, OpenCLIP's checkpoints, plain state dicts."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from clipfast.arguments import WrongKindError, shown, truth, whole_number
from clipfast.models import weight_files
from clipfast.models.architecture import Architecture
from clipfast.models.clip import CLIP
from clipfast.models.exportable import check_complete, check_fits, tensors_of
from clipfast.models.fitting import as_here, check_tensors
from clipfast.models.metadata import (
    WeightsMetadata,
    check_architecture,
    describe,
)
from clipfast.models.placing import check_places, check_values, odd_values
from clipfast.models.published import to_published, unwrap
from clipfast.models.trained_with import (
    Said,
    beside,
    check_activation,
    given_by_caller,
    warn_assumed,
)
from clipfast.models.weight_files import Contents


def load_weights(
    model: CLIP,
    path: str | os.PathLike[str],
    *,
    resize_positions: bool = False,
    activation: str | None = None,
    other_activation: bool = False,
    allow_nonfinite: bool = False,
) -> None:
    """Fill a model with the weights of a file, cast to the model's dtypes.

    Nothing that the file contains is run: pickles and TorchScript archives are read into inert
    objects (`clipfast.models.inert`, with the bounds on memory and time). The model changes only if
    everything fits and every number is finite in the model's type,
    what the file says of itself included (`read_metadata`). Whether weights were trained with GELU
    or QuickGELU no tensor tells: metadata, the modules of a TorchScript archive and a configuration
    beside the file do. Where none of them is there, a warning says what is assumed.
    Scalars of an objective (`Architecture.scalars`) that the file lacks keep their value.
    Load before `deepspeed.initialize`: a model that ZeRO-3 has partitioned has no shapes to fill.

    Args:
        model: what to fill; its parameters must have memory (no meta tensors).
        path: OpenAI's TorchScript `.pt`; what `torch.save` wrote: a state dict of this package, of
            OpenCLIP or of Hugging Face's CLIPModel, bare or within the checkpoint of a training
            program; `.safetensors` of the same; or files with an index, as Hugging Face and
            DeepSpeed's `zero_to_fp32.py` write them: the `.index.json`, or the folder.
        resize_positions: interpolate the image positions (bicubic) where the file was trained at
            another image size, as when ViT-L/14@336px starts from ViT-L/14.
        activation: "quick_gelu" or "gelu", which the weights were trained with, where you know and
            the file does not say.
        other_activation: load weights that were trained with another activation than the model
            computes. Their features are wrong until they are trained on.
        allow_nonfinite: load NaN and infinities too.

    Raises:
        ValueError: if the file does not exist, cannot be read, or holds no CLIP; if names, shapes
            or kinds of numbers differ, with the first of them, how many, and the model they belong
            to; or if the file says that it is of another model or activation.
    """
    path = Path(path)
    found = weight_files.read_metadata(path)
    contents = weight_files.read_contents(path)
    said = said_activation(path, contents, found, activation)
    if not other_activation:
        check_activation(said, model.config, path)
    fill(
        model,
        path,
        contents,
        found,
        resize_positions=resize_positions,
        allow_nonfinite=allow_nonfinite,
    )
    if said is None and not other_activation:
        warn_assumed(model.config, path)


def read_metadata(path: str | os.PathLike[str]) -> WeightsMetadata | None:
    """What a file of weights says of itself: model, activation, preprocessing, step.

    Args:
        path: as `load_weights` takes it.

    Returns:
        The metadata that `export` wrote; None where the file has none, as those of other programs.

    Raises:
        ValueError: the file does not exist or cannot be read, or its metadata is malformed.
    """
    return weight_files.read_metadata(Path(path))


def export(
    model_or_state_dict: nn.Module | Mapping[str, Tensor],
    path: str | os.PathLike[str],
    *,
    architecture: Architecture | None = None,
    step: int | None = None,
    allow_nonfinite: bool = False,
) -> None:
    """Write weights under the names that OpenCLIP and OpenAI use, `logit_scale` with shape [].

    The file appears whole or not at all, with its bytes on the disk. It says which model and
    activation it is of and how images are prepared (`read_metadata`): `.safetensors` among its
    metadata, `.pt` in an entry `clipfast.json` of the zip, beside a plain state dict.

    Args:
        model_or_state_dict: a CLIP model, or its state dict (names with or without "module.");
            parameters that ZeRO-3 has partitioned must be gathered first.
        path: where to write; `.pt` gives a plain state dict, `.safetensors` that format.
        architecture: of the model; needed with a state dict only, whose file says nothing of
            itself without it.
        step: optimizer steps taken.
        allow_nonfinite: write NaN and infinities too; `load_weights` refuses such a file unless it
            is told the same.

    Raises:
        TypeError: an argument is of another kind; a `ValueError` too.
        ValueError: for another suffix, if this is not the state of a whole CLIP model, or not of
            `architecture`, for a negative step, or where a number is not finite.
        OSError: if the file cannot be written, with path and free space.
    """
    path = _path_of(path)
    weight_files.check_suffix(path)
    step = None if step is None else whole_number("step", step, 0)
    given = model_or_state_dict
    if not isinstance(architecture, Architecture | None):
        raise WrongKindError(
            f"architecture must be an Architecture, such as model.config; got {shown(architecture)}"
        )
    state = unwrap(tensors_of(given))
    was_given, architecture = architecture is not None, architecture or architecture_of(given)
    check_complete(state, architecture)
    if not truth("allow_nonfinite", allow_nonfinite) and (text := odd_values(state)):
        raise ValueError(
            f"refused to export to {path}: {text}. A run that diverged leaves such weights: take "
            "an earlier checkpoint. export(..., allow_nonfinite=True) writes them all the same"
        )
    if was_given and architecture is not None:
        check_fits(state, architecture)
    metadata = None
    if architecture is not None:
        scalars = {
            # JSON has no NaN; the tensor in the file has it.
            name: value if math.isfinite(value := state[name].item()) else start
            for name, start in architecture.scalars
            if name != "logit_scale" and name in state
        }
        metadata = describe(architecture, scalars, step)
    weight_files.write_state(to_published(state), path, metadata)


def said_activation(
    path: Path,
    contents: Contents,
    found: WeightsMetadata | None,
    activation: str | None = None,
) -> Said | None:
    """What tells which activation a file was trained with; None where nothing does.

    Args:
        path: the file.
        contents: what it holds.
        found: what it says of itself.
        activation: what the caller says of it, which counts where the file says nothing.
    """
    given = None if activation is None else given_by_caller(activation)
    if found is not None:
        return Said(found.activation, "as it says itself")
    if contents.activation is not None:
        return Said(contents.activation, "as its modules tell")
    return given or beside(path)


def architecture_of(module: object) -> Architecture | None:
    """The architecture of a model here, whatever is wrapped around it; None of other modules."""
    while isinstance(module, nn.Module):
        if isinstance(module, CLIP):
            return module.config
        module = getattr(module, "module", None) or getattr(module, "_orig_mod", None)
    return None


def fill(
    model: CLIP,
    path: Path,
    contents: Contents,
    found: WeightsMetadata | None,
    *,
    resize_positions: bool,
    allow_nonfinite: bool = False,
) -> None:
    """Put the tensors of a file into a model, once all of them fit.

    Args:
        model: what to fill.
        path: the file, for messages.
        contents: what it holds.
        found: what it says of itself.
        resize_positions: see `load_weights`.
        allow_nonfinite: see `load_weights`.

    Raises:
        ValueError: they are not those of this model, or no weights.
    """
    config, target = model.config, model.state_dict()
    given = as_here(contents.state, config, target, resize_positions)
    check_tensors(given, target, config, path, found, contents.origin)
    if found is not None:
        check_architecture(found, config, path, resized=resize_positions)
    check_places(target, given, config.name)
    if not allow_nonfinite:
        check_values(given, target, path)
    model.load_state_dict(given)


def _path_of(path: Any) -> Path:
    if not isinstance(path, str | os.PathLike):
        raise WrongKindError(f"path must be text or a path; got {shown(path)}")
    text = os.fspath(path)
    if isinstance(text, bytes) or "\0" in text:
        raise ValueError(f"path must be text without zero bytes; got {text!r}")
    if scheme := re.match(r"[A-Za-z][\w+.-]*://", text):
        raise ValueError(
            f"path {text!r}: weights are written to a file system, not to '{scheme.group()}'; "
            "export to a local path and copy the file"
        )
    return Path(text)
