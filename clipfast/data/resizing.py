"""Squares cut from decoded pictures on a CPU and resized in several threads."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from torch import Tensor

from clipfast.ops.resize import resize_crops

# A thread takes so many parts of a batch, one after another: pictures differ in size.
_PARTS_PER_THREAD = 4
# Crops of the operator, in float32, that a core's cache holds until they are bytes.
_CACHED_BYTES = 1 << 18
# With these the operator's normalised pixels are the rounded bytes themselves.
_NO_MEAN, _NO_STD = (0.0,) * 3, (1 / 255,) * 3


class Resizer:
    """Makes batches of crops from DALI's decoded pictures.

    Args:
        image_size: S, pixels.
        threads: that work at a time.
    """

    def __init__(self, image_size: int, threads: int) -> None:
        self._image_size = image_size
        self._parts = threads * _PARTS_PER_THREAD if threads > 1 else 1
        self._at_once = max(1, _CACHED_BYTES // (4 * 3 * image_size**2))
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="clipfast-resize")

    def __call__(self, pictures: Any, cuts: np.ndarray) -> Tensor:
        """Cut and resize a batch.

        Args:
            pictures: DALI's list of B pictures ``[H, W, 3]`` uint8 on the CPU.
            cuts: ``[B, 5]``; see ``clipfast.data.encoded.EncodedBatch.cuts``.

        Returns:
            ``[B, S, S, 3]`` uint8.
        """
        # The arrays do not own the pixels: DALI does, until its outputs are released.
        images = [torch.from_numpy(np.asarray(picture)) for picture in pictures]
        boxes = torch.from_numpy(boxes_of(cuts, [image.shape for image in images]))
        out = torch.empty((len(images), self._image_size, self._image_size, 3), dtype=torch.uint8)
        ends = np.linspace(0, len(images), min(self._parts, len(images)) + 1).astype(int)

        def work(start: int, stop: int) -> None:
            buffer = torch.empty(self._at_once, *out.shape[1:])
            for first in range(start, stop, self._at_once):
                rows = slice(first, min(first + self._at_once, stop))
                rounded = buffer[: rows.stop - first]
                resize_crops(images[rows], boxes[rows], _NO_MEAN, _NO_STD, rounded)
                out[rows] = rounded

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
