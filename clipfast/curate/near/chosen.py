"""The detector that steps name: it is opened in each worker, and must be the one of the start."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from clipfast.curate.near.detectors import Detector, open_detector


@dataclass(frozen=True)
class Chosen:
    """A detector by its name, as steps hold it.

    Attributes:
        spec: see ``clipfast.curate.near.detectors``.
        digest: of its weights.
        looks: at a picture, see ``clipfast.curate.near.looks``.
        device: "cpu" or "cuda".
    """

    spec: str
    digest: str
    looks: int = 1
    device: str = "cpu"

    def options(self) -> dict[str, Any]:
        """All that decides its vectors. A GPU rounds in other places than a CPU."""
        return {"detector": self.digest, "device": self.device}

    def open(self, share: str) -> Detector:
        """The detector.

        Args:
            share: a name; with several GPUs it decides on which one the work is done.

        Raises:
            ValueError: its weights have changed since the start.
        """
        device = self.device
        if device == "cuda":
            device = f"cuda:{zlib.crc32(share.encode()) % torch.cuda.device_count()}"
        detector = open_detector(self.spec, device)
        if detector.digest != self.digest:
            raise ValueError(f"detector {self.spec} has changed since the start: run again")
        return detector


def choose_detector(spec: str, device: str | None = None) -> Chosen:
    """What steps hold of a detector.

    Args:
        spec: see ``clipfast.curate.near.detectors``.
        device: "cpu" or "cuda"; None: a GPU where there is one. The hash takes the CPU.

    Raises:
        ValueError: there is no such detector, or no GPU.
    """
    detector = open_detector(spec)
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda: torch sees no GPU here; leave the option out")
    if detector.name == "hash":
        device = "cpu"
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    return Chosen(spec, detector.digest, detector.looks, device)


@contextmanager
def one_thread() -> Iterator[None]:
    """torch with one thread: sums are then taken in one order, and workers do not crowd cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
