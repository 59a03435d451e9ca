"""A model to evaluate, from whatever holds its weights."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clipfast.checkpoint.catalogue import Found, find, look
from clipfast.checkpoint.contents import export_weights
from clipfast.checkpoint.fragments import Unfit
from clipfast.models import CLIP, create_model, create_model_from_file, load_weights, read_metadata
from clipfast.preprocessing import Preprocessing
from clipfast.storage.nearby import is_elsewhere, nearby
from clipfast.storage.paths import join

FINAL = "final.safetensors"
CHECKPOINTS = "checkpoints"
_SUFFIXES = (".safetensors", ".pt", ".pth", ".bin")


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
        weights: a file or folder that ``clipfast.load_weights`` takes; a run's folder, with its
            ``final.safetensors`` or else its newest checkpoint; or the folder of one checkpoint.
            In a store: a file, or a run's folder with its ``final.safetensors``.
        activation: "quick_gelu" or "gelu", where you know and the file does not say.

    Returns:
        The model in evaluation mode.

    Raises:
        ValueError: the weights cannot be read, or are not of that model.
    """
    if is_elsewhere(str(weights)):
        return _of_a_store(name, str(weights), activation)
    path = Path(weights)
    if (path / FINAL).is_file():
        path = path / FINAL
    elif (found := _checkpoint(path)) is not None:
        said = _said_model(found)
        with _exported(found) as file:
            model = _load(name or said.get("name"), file, activation or said.get("activation"))
            return _loaded(model, file, weights)
    return _loaded(_load(name, path, activation), path, weights)


def _of_a_store(name: str | None, weights: str, activation: str | None) -> LoadedModel:
    path = weights if weights.endswith(_SUFFIXES) else join(weights, FINAL)
    try:
        with nearby(path) as file:
            return _loaded(_load(name, file, activation), file, weights)
    except OSError as error:
        raise ValueError(f"{weights}: {error}") from error


def _load(name: str | None, path: Path, activation: str | None) -> CLIP:
    if name is None:
        overrides: dict[str, Any] = {} if activation is None else {"activation": activation}
        return create_model_from_file(path, **overrides)
    found = read_metadata(path)
    activation = activation if found is None else found.activation
    model = create_model(name, **({} if activation is None else {"activation": activation}))
    load_weights(model, path, activation=activation)
    return model


def _loaded(model: CLIP, path: Path, weights: str | Path) -> LoadedModel:
    found = read_metadata(path)
    preprocessing = (
        Preprocessing(model.config.vision.image_size) if found is None else found.preprocessing
    )
    return LoadedModel(model.eval(), preprocessing, model.config.name, str(weights))


def _checkpoint(folder: Path) -> Found | None:
    """A checkpoint's folder, or the newest of a run's; None where it is neither."""
    if not folder.is_dir():
        return None
    if (found := look(folder)) is not None:
        return found
    return next(reversed(find(folder / CHECKPOINTS)), None)


def _said_model(found: Found) -> dict[str, Any]:
    """What the run that saved a checkpoint was told of its model."""
    if found.manifest is None:
        raise ValueError(
            f"{found.damage}. Name an earlier checkpoint's folder, or the run's {FINAL}"
        )
    config = found.manifest.state.get("config")
    model = config.get("model") if isinstance(config, dict) else None
    return model if isinstance(model, dict) else {}


@contextmanager
def _exported(found: Found) -> Iterator[Path]:
    """A file with the exact weights of a checkpoint, for as long as it is read."""
    assert found.manifest is not None
    with tempfile.TemporaryDirectory(prefix="clipfast-eval-") as folder:
        file = Path(folder) / "weights.safetensors"
        try:
            export_weights(found.path, found.manifest, file)
            yield file
        except Unfit as error:
            raise ValueError(str(error)) from error
        except ValueError as error:
            raise ValueError(str(error).replace(str(file), str(found.path))) from error
