"""Squares as torchvision cuts them from Pillow's pictures, for results that must equal others'.

Pillow rounds between its two passes, and torchvision cuts at whole pixels. The decoder of training
rounds once and cuts where the middle is. A pixel in five differs by 1 of 255, and about one answer
in a hundred of a model with it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
from PIL import UnidentifiedImageError
from PIL.Image import Image, Resampling
from torch import Tensor

from clipfast.data.rgb import open_rgb
from clipfast.data.unreadable import why_broken, why_unreadable
from clipfast.eval.decoding import ImageSet

# Batches that are worked on ahead of the one that is asked for.
_AHEAD = 2


class PillowDecoder:
    """Squares from the middle of a set's images, in its order; see ``SetDecoder``.

    Args:
        images: the set.
        part: the places that are decoded.
        batch_size: images at a time.
        image_size: S, pixels.
        threads: of the CPU.

    Attributes:
        unreadable: by place, why an image does not decode; complete at the end.
    """

    def __init__(
        self, images: ImageSet, part: range, batch_size: int, image_size: int, threads: int
    ) -> None:
        self.unreadable: dict[int, str] = {}
        self._images = images
        self._part = part
        self._batch_size = batch_size
        self._image_size = image_size
        self._threads = threads

    def __iter__(self) -> Generator[Tensor, None, None]:
        """Batches ``[B, S, S, 3]`` uint8 on the CPU; the last may be smaller."""
        with ThreadPoolExecutor(self._threads, thread_name_prefix="clipfast-pillow") as pool:
            pending: deque[list[Future[Tensor]]] = deque()
            try:
                for start in range(0, len(self._part), self._batch_size):
                    places = self._part[start : start + self._batch_size]
                    pending.append([pool.submit(self._square, place) for place in places])
                    if len(pending) > _AHEAD:
                        yield torch.stack([future.result() for future in pending.popleft()])
                while pending:
                    yield torch.stack([future.result() for future in pending.popleft()])
            finally:
                pool.shutdown(cancel_futures=True)

    def _square(self, place: int) -> Tensor:
        """One square; grey where the image does not decode."""
        data = b""
        try:
            data = self._images.encoded(place)
            return torch.from_numpy(np.array(middle_square(open_rgb(data), self._image_size)))
        except UnidentifiedImageError:
            self.unreadable[place] = why_unreadable(data)
        except Exception as error:  # Pillow raises many kinds
            self.unreadable[place] = why_broken(data, error)
        return torch.full((self._image_size, self._image_size, 3), 128, dtype=torch.uint8)


def middle_square(image: Image, size: int) -> Image:
    """``torchvision.transforms.Resize(size, BICUBIC)``, then ``CenterCrop(size)``.

    Args:
        image: RGB.
        size: S, pixels.

    Returns:
        ``S x S``.
    """
    short, long = sorted(image.size)
    if short != size:
        other = int(size * long / short)
        wide = image.width > image.height
        image = image.resize((other, size) if wide else (size, other), Resampling.BICUBIC)
    left, top = (round((side - size) / 2.0) for side in image.size)
    return image.crop((left, top, left + size, top + size))
