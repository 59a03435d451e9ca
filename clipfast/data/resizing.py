"""Squares cut from decoded pictures on a CPU, resized and normalised in several threads."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from torch import Tensor

from clipfast.ops.resize import resize_crops
from clipfast.preprocessing import MEAN, STD

# A thread takes so many parts of a batch, one after another: pictures differ in size.
_PARTS_PER_THREAD = 4


class Resizer:
    """Makes batches of crops from DALI's decoded pictures.

    Args:
        image_size: S, pixels.
        threads: that work at a time.
    """

    def __init__(self, image_size: int, threads: int) -> None:
        self._image_size = image_size
        self._parts = threads * _PARTS_PER_THREAD if threads > 1 else 1
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="clipfast-resize")

    def __call__(self, pictures: Any, cuts: np.ndarray) -> Tensor:
        """Cut, resize and normalise a batch.

        Args:
            pictures: DALI's list of B pictures ``[H, W, 3]`` uint8 on the CPU.
            cuts: ``[B, 5]``; see ``clipfast.data.encoded.EncodedBatch.cuts``.

        Returns:
            ``[B, S, S, 3]`` float32.
        """
        # The arrays do not own the pixels: DALI does, until its outputs are released.
        images = [torch.from_numpy(np.asarray(picture)) for picture in pictures]
        boxes = torch.from_numpy(boxes_of(cuts, [image.shape for image in images]))
        # numpy asks for huge pages: in pages of 4 KB the first touch costs twice the resize.
        out = torch.from_numpy(
            np.empty((len(images), self._image_size, self._image_size, 3), np.float32)
        )
        ends = np.linspace(0, len(images), min(self._parts, len(images)) + 1).astype(int)

        def work(start: int, stop: int) -> None:
            resize_crops(images[start:stop], boxes[start:stop], MEAN, STD, out[start:stop])

        if self._parts == 1:
            work(0, len(images))
        else:
            list(self._pool.map(work, ends[:-1].tolist(), ends[1:].tolist()))
        return out

    def close(self) -> None:
        """End the threads."""
        self._pool.shutdown(wait=True)


def boxes_of(cuts: np.ndarray, shapes: Sequence[Sequence[int]]) -> np.ndarray:
    """Squares in pixels.

    Args:
        cuts: ``[B, 5]``; see ``clipfast.data.encoded.EncodedBatch.cuts``.
        shapes: height and width of each picture, and whatever follows.

    Returns:
        ``[B, 3]`` float64: top, left, side.
    """
    cuts = cuts.astype(np.float64)
    size = np.array([shape[:2] for shape in shapes], np.float64) * cuts[:, 3:]
    side = size.min(axis=1) * cuts[:, 0]
    return np.column_stack([(size - side[:, None]) * cuts[:, 1:3], side])
