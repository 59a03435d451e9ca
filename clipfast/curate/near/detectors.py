"""What says how alike two pictures are, by its name on the command line.

    hash                   a perceptual hash of 64 bits
    clip:FILE_OR_FOLDER    the image tower of weights that clipfast loads
    FOLDER                 a detector that recipes/near_duplicates.py has trained

A detector makes a unit vector of a picture, or one per look at it. The similarity of two pictures
is the dot product of their vectors, of that look where it is largest.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

_CLIP = "clip:"


class Detector(Protocol):
    """Makes vectors of pictures."""

    @property
    def name(self) -> str:
        """``hash``, ``clip`` or ``trained``."""

    @property
    def digest(self) -> str:
        """Of its weights and parameters: equal digests give equal vectors."""

    @property
    def looks(self) -> int:
        """Vectors per picture, see ``clipfast.curate.near.looks``."""

    def prepare(self, image: np.ndarray) -> np.ndarray:
        """What ``vectors`` takes of one picture, a small square. Called by several threads.

        Args:
            image: ``[H, W, 3]`` uint8, RGB.

        Returns:
            ``[S, S, C]`` or ``[S, S]``, of one size and type for all pictures. Its second axis runs
            from left to right. Looks are side by side in C.
        """

    def vectors(self, prepared: np.ndarray) -> np.ndarray:
        """Vectors of a batch.

        Args:
            prepared: ``[N, ...]`` of ``prepare``.

        Returns:
            ``[N, D]`` float32: a vector of length 1 per look.
        """

    def embed(self, images: Sequence[np.ndarray]) -> np.ndarray:
        """Vectors of pictures of any size.

        Args:
            images: N of ``[H, W, 3]`` uint8, RGB.

        Returns:
            ``[N, D]`` float32: a vector of length 1 per look.
        """


class Prepared:
    """``embed`` of a detector that looks once, by its ``prepare`` and its ``vectors``."""

    looks = 1

    def prepare(self, image: np.ndarray) -> np.ndarray:
        """See ``Detector``."""
        raise NotImplementedError

    def vectors(self, prepared: np.ndarray) -> np.ndarray:
        """See ``Detector``."""
        raise NotImplementedError

    def embed(self, images: Sequence[np.ndarray]) -> np.ndarray:
        """See ``Detector``; at least one picture."""
        return self.vectors(np.stack([self.prepare(image) for image in images]))


@functools.lru_cache(2)
def open_detector(spec: str, device: str = "cpu") -> Detector:
    """A detector by its name; the same one when it is asked for again in this process.

    Args:
        spec: see the head of this module.
        device: where it computes, such as "cuda:0"; the hash computes on the CPU.

    Raises:
        ValueError: there is no such detector, or its weights cannot be read.
    """
    if spec == "hash":
        from clipfast.curate.near.phash import PerceptualHash

        return PerceptualHash()
    if spec.startswith(_CLIP):
        from clipfast.curate.near.clip import ClipDetector

        return ClipDetector(spec.removeprefix(_CLIP), device)
    if Path(spec).is_dir():
        from clipfast.curate.near.trained import TrainedDetector

        return TrainedDetector(spec, device)
    raise ValueError(
        f"no detector {spec!r}: give hash, clip:FILE of weights, or the folder of a detector that "
        "recipes/near_duplicates.py has trained"
    )
