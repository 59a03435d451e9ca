"""The detector that a run of recipes/near_duplicates.py leaves."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

import clipfast.models.detectors  # noqa: F401  # makes its models known
from clipfast.data.pairs import squashed
from clipfast.data.pixels import normalised
from clipfast.eval.hashes import image_hash
from clipfast.models import CLIP, create_model_from_file

_WEIGHTS = "final.safetensors"


class NearModel:
    """A tower that maps copies of a picture to nearly the same vector.

    Args:
        model: one without a text tower.
    """

    def __init__(self, model: CLIP) -> None:
        self.model = model.eval().requires_grad_(False)
        self.image_size = model.config.vision.image_size
        self.digest = image_hash(model)[:16]

    def to(self, device: torch.device | str) -> NearModel:
        """Move it, in place.

        Args:
            device: where it computes from now on.
        """
        self.model.to(device)
        return self

    def prepare(self, image: np.ndarray) -> np.ndarray:
        """The whole picture in a square.

        Args:
            image: ``[H, W, 3]`` uint8, RGB.

        Returns:
            ``[S, S, 3]`` uint8.
        """
        return squashed(Image.fromarray(image), self.image_size)

    @torch.no_grad()
    def encode(self, squares: Tensor) -> Tensor:
        """Vectors of squares.

        Args:
            squares: ``[N, S, S, 3]`` uint8, on the model's device.

        Returns:
            ``[N, D]`` float32, rows of length 1.
        """
        pixels = normalised(squares.contiguous(), torch.float32)
        return F.normalize(self.model.encode_image(pixels).float(), dim=1)


def load(folder: str | Path) -> NearModel:
    """The detector in the folder of a run.

    Args:
        folder: with ``final.safetensors`` in it.

    Raises:
        ValueError: it holds none, or that of a model that reads captions.
    """
    path = Path(folder, _WEIGHTS)
    if not path.is_file():
        raise ValueError(
            f"no detector in {folder}: {_WEIGHTS} is not there. A finished run of "
            "recipes/near_duplicates.py leaves it; give that run's folder"
        )
    model = create_model_from_file(path)
    if model.config.text is not None:
        raise ValueError(
            f"{path} is of {model.config.name}, a model of pictures and captions: as a detector it "
            f"is clip:{path}"
        )
    return NearModel(model)
