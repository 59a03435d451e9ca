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
    ``looks``, ``prepare`` (``[H, W, 3]`` uint8 to ``[S, S, C]`` uint8), ``encode`` (a tensor,
    ``[N, S, S, C]`` uint8, to ``[N, D]`` float32: a unit vector per look) and ``to(device)``.

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
        self.looks: int = self._model.looks

    def prepare(self, image: np.ndarray) -> np.ndarray:
        """See ``Detector``."""
        return self._model.prepare(image)

    @torch.no_grad()
    def vectors(self, prepared: np.ndarray) -> np.ndarray:
        """See ``Detector``."""
        squares = torch.from_numpy(np.array(prepared)).to(self._device)
        return self._model.encode(squares).float().cpu().numpy()
