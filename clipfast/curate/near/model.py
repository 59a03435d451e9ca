"""The detector that a run of recipes/near_duplicates.py leaves."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

import clipfast.models.detectors  # noqa: F401  # makes its models known
from clipfast.curate.near.pixels import pixel_vectors
from clipfast.data.pairs import squashed
from clipfast.data.pixels import normalised
from clipfast.eval.hashes import image_hash
from clipfast.models import CLIP, create_model_from_file

_WEIGHTS = "final.safetensors"


# Of the similarity of two pictures, what their pixels say; the tower says the rest.
PIXELS = 0.5
# Names what is made of a tower's features and of pixels: parts of work know it.
_FORM = f"two-looks-{PIXELS:g}"


class NearModel:
    """A tower that maps copies of a picture to nearly the same vector, and the picture's pixels.

    It looks twice: at the picture without its margins, and with them.

    Args:
        model: one without a text tower.
    """

    looks = 2

    def __init__(self, model: CLIP) -> None:
        self.model = model.eval().requires_grad_(False)
        self.image_size = model.config.vision.image_size
        self.digest = f"{image_hash(model)[:16]}-{_FORM}"

    def to(self, device: torch.device | str) -> NearModel:
        """Move it, in place.

        Args:
            device: where it computes from now on.
        """
        self.model.to(device)
        return self

    def prepare(self, image: np.ndarray) -> np.ndarray:
        """The whole picture in a square, without and with its margins.

        Args:
            image: ``[H, W, 3]`` uint8, RGB.

        Returns:
            ``[S, S, 6]`` uint8.
        """
        picture = Image.fromarray(image)
        looks = [squashed(picture, self.image_size, margins=each) for each in (False, True)]
        return np.concatenate(looks, axis=2)

    @torch.no_grad()
    def encode(self, squares: Tensor) -> Tensor:
        """Vectors of squares.

        Args:
            squares: ``[N, S, S, 6]`` uint8, on the model's device.

        Returns:
            ``[N, 2 D]`` float32: a vector of length 1 per look.
        """
        return torch.cat([self._look(each.contiguous()) for each in squares.split(3, dim=3)], dim=1)

    def _look(self, squares: Tensor) -> Tensor:
        """``[N, D]``: features and pixels side by side, so that products are weighted means."""
        features = self.model.encode_image(normalised(squares, torch.float32)).float()
        tower = (1 - PIXELS) ** 0.5 * F.normalize(features, dim=1)
        return F.normalize(torch.cat([tower, PIXELS**0.5 * pixel_vectors(squares)], dim=1), dim=1)


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
