"""A detector that recipes/near_duplicates.py has trained."""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import torch

from clipfast.curate.near.detectors import Prepared

_MODULE = "clipfast.curate.near.model"


class TrainedDetector(Prepared):
    """The model of a run's folder.

    ``clipfast.curate.near.model.load(folder)`` gives an object with ``digest`` (of its weights),
    ``prepare`` (``[H, W, 3]`` uint8 to ``[S, S, 3]`` uint8), ``encode`` (``[N, S, S, 3]`` uint8, a
    tensor, to ``[N, D]`` float32 of length 1) and ``to(device)``.

    Args:
        folder: of the detector.
        device: where it computes.

    Raises:
        ValueError: the folder holds no detector.
    """

    name = "trained"

    def __init__(self, folder: str, device: str = "cpu") -> None:
        self._device = torch.device(device)
        self._model: Any = importlib.import_module(_MODULE).load(folder).to(self._device)
        self.digest: str = self._model.digest

    def prepare(self, image: np.ndarray) -> np.ndarray:
        """See ``Detector``."""
        return self._model.prepare(image)

    @torch.no_grad()
    def vectors(self, prepared: np.ndarray) -> np.ndarray:
        """See ``Detector``."""
        squares = torch.from_numpy(np.array(prepared)).to(self._device)
        return self._model.encode(squares).float().cpu().numpy()
