"""A model to evaluate, from whatever holds its weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clipfast.models import CLIP, create_model, create_model_from_file, load_weights, read_metadata
from clipfast.preprocessing import Preprocessing

FINAL = "final.safetensors"


@dataclass(frozen=True, eq=False)
class LoadedModel:
    """A model in evaluation mode, and how its images are prepared.

    Attributes:
        model: float32, on the CPU.
        preprocessing: as its weights tell, else as the paper's models have it.
        name: of the architecture, such as "ViT-B/32".
        weights: what it was loaded from, as it was asked for.
    """

    model: CLIP
    preprocessing: Preprocessing
    name: str
    weights: str


def load_model(
    name: str | None, weights: str | Path, *, activation: str | None = None
) -> LoadedModel:
    """A model with its weights.

    Args:
        name: one of ``list_models()``; None: the one that the weights are of.
        weights: a file or folder that ``clipfast.load_weights`` takes, or a run's folder with its
            ``final.safetensors``.
        activation: "quick_gelu" or "gelu", where you know and the file does not say.

    Returns:
        The model in evaluation mode.

    Raises:
        ValueError: the weights cannot be read, or are not of that model.
    """
    path = Path(weights)
    if (path / FINAL).is_file():
        path = path / FINAL
    if name is None:
        overrides: dict[str, Any] = {} if activation is None else {"activation": activation}
        model = create_model_from_file(path, **overrides)
    else:
        model = create_model(name)
        load_weights(model, path, activation=activation)
    return LoadedModel(model.eval(), _preprocessing(model, path), model.config.name, str(weights))


def _preprocessing(model: CLIP, path: Path) -> Preprocessing:
    found = read_metadata(path)
    if found is None:
        return Preprocessing(model.config.vision.image_size)
    return found.preprocessing
