"""What a file of weights says of itself: model, activation, pixels, step.

Tensors alone do not say which activation or head width they were trained with, and weights of the
wrong one load and give wrong features. So an exported file carries a block of JSON: in safetensors
among the metadata, in `.pt` as one more entry of the zip, which `torch.load` passes over.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import clipfast
from clipfast.models.architecture import Architecture
from clipfast.models.checks import some_of
from clipfast.preprocessing import Preprocessing

KEY = "clipfast"
LIMIT = 1 << 16
_LARGEST = 1 << 24

Value = int | float | str | bool | None | tuple[Any, ...]
_T = TypeVar("_T")


@dataclass(frozen=True)
class WeightsMetadata:
    """What a file of weights says of itself.

    Attributes:
        model: the name in `list_models()`.
        activation: "quick_gelu" or "gelu".
        tower: class of the image tower's configuration.
        architecture: the fields of `Architecture.flat`.
        preprocessing: how images were prepared.
        scalars: numbers beside `logit_scale` that an objective brought, by name.
        step: optimizer steps taken, where a run wrote the file.
        version: of the clipfast that wrote it.
    """

    model: str
    activation: str
    tower: str
    architecture: Mapping[str, Value]
    preprocessing: Preprocessing
    scalars: Mapping[str, float] = field(default_factory=dict)
    step: int | None = None
    version: str = clipfast.__version__

    @property
    def context_length(self) -> int | None:
        """Most tokens of a caption; None where the file does not say."""
        length = self.architecture.get("context_length")
        return length if isinstance(length, int) else None

    def to_json(self) -> str:
        """The block that is written into a file."""
        return json.dumps(
            {
                "model": self.model,
                "activation": self.activation,
                "context_length": self.context_length,
                "preprocess_cfg": self.preprocessing.as_openclip(),
                "tower": self.tower,
                "architecture": dict(self.architecture),
                "scalars": dict(self.scalars),
                "step": self.step,
                "version": self.version,
            }
        )


def describe(
    architecture: Architecture, scalars: Mapping[str, float] | None = None, step: int | None = None
) -> WeightsMetadata:
    """The metadata of a model here.

    Args:
        architecture: of the model.
        scalars: numbers beside `logit_scale`, by name.
        step: optimizer steps taken.
    """
    fields = {n: v for n, v in architecture.flat().items() if _is_plain(v)}
    return WeightsMetadata(
        model=architecture.name,
        activation=architecture.activation,
        tower=type(architecture.vision).__name__,
        architecture=fields,
        preprocessing=preprocessing_of(architecture),
        scalars=dict(scalars or {}),
        step=step,
    )


def preprocessing_of(architecture: Architecture) -> Preprocessing:
    """How images are prepared for a model.

    Args:
        architecture: of it. One that looks for duplicates reads the whole picture, which a square
            out of the middle is not.
    """
    mode = "shortest" if architecture.text is not None else "squash"
    return Preprocessing(architecture.vision.image_size, resize_mode=mode)


def parse(text: str | bytes, path: Path) -> WeightsMetadata:
    """Metadata from the block of a file that nobody vouches for.

    Args:
        text: the block.
        path: the file, for messages.

    Raises:
        ValueError: it is too large, no JSON, or holds values of other types.
    """
    try:
        if len(text) > LIMIT:
            raise ValueError(f"it has {len(text):,} bytes, more than {LIMIT:,}")
        return _read(json.loads(text))
    except (ValueError, RecursionError, OverflowError) as error:
        raise ValueError(
            f"{path}: its clipfast metadata is malformed: {str(error)[:200]}. Take another copy of "
            "the file, or write it anew with clipfast.export"
        ) from error


def check_architecture(
    found: WeightsMetadata, architecture: Architecture, path: Path, *, resized: bool
) -> None:
    """Refuse weights of another model whose tensors have the same names and shapes.

    Args:
        found: what the file says.
        architecture: of the model that is to be filled.
        path: the file, for messages.
        resized: another image size is wanted.

    Raises:
        ValueError: the models differ, with the differences and the remedy.
    """
    own = architecture.flat()
    kind = type(architecture.vision).__name__
    differing = [] if found.tower == kind else [f"its image tower is a {found.tower}, not a {kind}"]
    differing += [
        f"{name} is {value!r} in the file, {own[name]!r} in the model"
        for name, value in found.architecture.items()
        if name in own and own[name] != value and not (resized and name == "image_size")
    ]
    if differing:
        raise ValueError(
            f"{path} holds weights of {found.model!r} and does not fit {architecture.name}: "
            f"{some_of(differing)}. create_model.from_file({str(path)!r}) builds its model"
        )


def _is_plain(value: object) -> bool:
    """Whether JSON gives a value of an architecture back as it was."""
    if isinstance(value, tuple):
        return all(_is_plain(item) for item in value)
    return value is None or isinstance(value, int | float | str | bool)


def _read(block: object) -> WeightsMetadata:
    given = _typed(block, dict, "the block")
    pixels = _typed(given.get("preprocess_cfg"), dict, "preprocess_cfg")
    step = given.get("step")
    architecture = _typed(given.get("architecture"), dict, "architecture")
    scalars = _typed(given.get("scalars", {}), dict, "scalars")
    return WeightsMetadata(
        model=_typed(given.get("model"), str, "model"),
        activation=_typed(given.get("activation"), str, "activation"),
        tower=_typed(given.get("tower"), str, "tower"),
        architecture={name: _field(value, name) for name, value in architecture.items()},
        preprocessing=Preprocessing(
            image_size=_count(pixels.get("size"), "preprocess_cfg.size"),
            mean=_channels(pixels.get("mean"), "preprocess_cfg.mean"),
            std=_channels(pixels.get("std"), "preprocess_cfg.std"),
            interpolation=_typed(pixels.get("interpolation"), str, "preprocess_cfg.interpolation"),
            resize_mode=_typed(pixels.get("resize_mode"), str, "preprocess_cfg.resize_mode"),
        ),
        scalars={name: _number(value, f"scalars.{name}") for name, value in scalars.items()},
        step=None if step is None else _count(step, "step"),
        version=_typed(given.get("version"), str, "version"),
    )


def _typed(value: object, kind: type[_T], name: str) -> _T:
    if type(value) is not kind:
        raise ValueError(f"{name} is of type {type(value).__name__}, not {kind.__name__}")
    return value


def _count(value: object, name: str) -> int:
    number = _typed(value, int, name)
    if not 0 <= number < 1 << 63:
        raise ValueError(f"{name} is out of range")
    return number


def _number(value: object, name: str) -> float:
    number = float(value) if type(value) is int else _typed(value, float, name)
    if not math.isfinite(number):
        raise ValueError(f"{name} is {number}")
    return number


def _channels(value: object, name: str) -> tuple[float, ...]:
    numbers = tuple(_number(item, name) for item in _typed(value, list, name))
    if len(numbers) != 3:
        raise ValueError(f"{name} has {len(numbers)} numbers, not 3")
    return numbers


def _field(value: object, name: str) -> Value:
    if isinstance(value, list):
        return tuple(_field(item, name) for item in value)
    if type(value) is int and value > _LARGEST:
        raise ValueError(f"architecture.{name} is out of range")
    if value is None or isinstance(value, int | float | str | bool):
        return value
    raise ValueError(f"architecture.{name} is of type {type(value).__name__}")
