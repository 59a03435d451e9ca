"""The image tower of a CLIP as a detector: it finds what means the same, and not only copies."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from clipfast.curate.near.detectors import Prepared
from clipfast.data.pixels import normalised
from clipfast.eval.hashes import image_hash
from clipfast.eval.models import load_model
from clipfast.eval.pillow import middle_square


class ClipDetector(Prepared):
    """Features of length 1.

    Args:
        weights: a file, or the folder of a run or a checkpoint.
        device: where it computes.

    Raises:
        ValueError: the weights cannot be read.
    """

    name = "clip"

    def __init__(self, weights: str, device: str = "cpu") -> None:
        loaded = load_model(None, weights)
        self.digest = image_hash(loaded.model)[:16]
        self._device = torch.device(device)
        self._model = loaded.model.to(self._device)
        self._prepares = loaded.preprocessing

    def prepare(self, image: np.ndarray) -> np.ndarray:
        """``[S, S, 3]`` uint8: the square in the middle, as evaluation cuts it."""
        return np.array(middle_square(Image.fromarray(image), self._prepares.image_size))

    @torch.no_grad()
    def vectors(self, prepared: np.ndarray) -> np.ndarray:
        """See ``Detector``."""
        squares = torch.from_numpy(np.array(prepared)).to(self._device)
        pixels = normalised(squares, torch.float32, self._prepares.mean, self._prepares.std)
        features = F.normalize(self._model.encode_image(pixels).float(), dim=1)
        return features.cpu().numpy()
