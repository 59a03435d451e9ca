"""The images of a set through the decoder that evaluation in training has."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from clipfast.data.check import Limits, check_header, check_size
from clipfast.data.decode import Decoder
from clipfast.data.encoded import EncodedBatch, Request
from clipfast.data.judge import SOUND
from clipfast.data.order import SampleRefs
from clipfast.data.plain import plain_size
from clipfast.data.prefetch import Prefetcher
from clipfast.data.prepare import prepare

_READ_AHEAD = 4
# A set is what it is: only what no memory holds is refused.
_LIMITS = Limits(min_side=1, max_aspect=1e6)
_MIDDLE = (1.0, 0.5, 0.5)


class ImageSet(Protocol):
    """What is decoded: a ``LabelledSet``, a ``CaptionedSet``, or anything with these."""

    @property
    def name(self) -> str:
        """For messages and the progress bar."""
        ...

    def __len__(self) -> int:
        """Number of images."""
        ...

    def encoded(self, i: int, /) -> bytes:
        """The file of the i-th image; called by several threads.

        Args:
            i: its place.
        """
        ...


class SetDecoder:
    """Squares from the middle of a set's images, in its order.

    An image that does not decode is a grey square, and ``unreadable`` says why.

    Args:
        images: the set.
        part: the places that are decoded.
        batch_size: images at a time.
        image_size: S, pixels.
        device: where they are wanted.
        threads: of the CPU.

    Attributes:
        unreadable: by place, why an image does not decode; complete at the end.
    """

    def __init__(
        self,
        images: ImageSet,
        part: range,
        batch_size: int,
        image_size: int,
        device: torch.device,
        threads: int,
    ) -> None:
        self.unreadable: dict[int, str] = {}
        self._images = images
        self._part = part
        self._batch_size = max(1, min(batch_size, len(part)))
        self._image_size = image_size
        self._device = device
        self._threads = threads

    def __iter__(self) -> Generator[Tensor, None, None]:
        """Batches ``[B, S, S, 3]`` uint8 on the device; the last may be smaller."""
        if not len(self._part):
            return
        threads = min(self._threads, _READ_AHEAD)
        with (
            closing(Prefetcher(self._read, self._requests(), threads, _READ_AHEAD)) as batches,
            closing(self._decoder(batches)) as decoder,
        ):
            for decoded in decoder:
                yield decoded.crops

    def broken(self, shard: int, row: int, reason: str) -> Exception:
        """See ``clipfast.data.decode.NamesBroken``."""
        return ValueError(f"{self._images.name}: image {row} cannot be decoded: {reason}")

    def settle(self, batch: EncodedBatch) -> EncodedBatch:
        """See ``clipfast.data.decode.Settles``: what is broken becomes grey and is remembered."""
        if not batch.faults:
            return batch
        images = list(batch.images)
        for row, reason in batch.faults.items():
            self.unreadable[int(batch.request.samples.row[row])] = reason
            images[row] = SOUND
        return replace(batch, images=images, faults={})

    def _decoder(self, batches: Iterator[EncodedBatch]) -> Decoder:
        return Decoder(
            batches,
            self,
            self._batch_size,
            self._image_size,
            self._device,
            self._threads,
            substitutes=self,
        )

    def _requests(self) -> Iterator[Request]:
        for start in range(0, len(self._part), self._batch_size):
            rows = np.array(self._part[start : start + self._batch_size], np.int64)
            crops = np.tile(np.array(_MIDDLE, np.float32), (len(rows), 1))
            yield Request(SampleRefs(np.zeros_like(rows), rows), crops)

    def _read(self, request: Request) -> EncodedBatch:
        images, faults = [], {}
        for row, place in enumerate(request.samples.row.tolist()):
            try:
                images.append(_fit(self._images.encoded(place)))
            except ValueError as error:
                images.append(SOUND)
                faults[row] = str(error)
        nothing = torch.empty(len(images), 0, dtype=torch.int64)
        return EncodedBatch(
            request,
            images,
            np.ones((len(images), 2), np.float32),
            captions=[],
            tokens=nothing,
            lengths=nothing,
            faults=faults,
        )


def _fit(data: bytes) -> np.ndarray:
    """An image as the decoder takes it.

    Raises:
        ValueError: why it cannot be read.
    """
    size = plain_size(data)
    if reason := check_size(size, _LIMITS) if size else check_header(data, _LIMITS):
        raise ValueError(reason)
    return np.frombuffer(data, np.uint8) if size else prepare(data)


def named(unreadable: dict[int, str], most: int = 5) -> Sequence[str]:
    """Lines that name the first images that do not decode.

    Args:
        unreadable: why, by place.
        most: that are named.
    """
    places = sorted(unreadable)
    lines = [f"image {place}: {unreadable[place]}" for place in places[:most]]
    return [*lines, f"and {len(places) - most} more"] if len(places) > most else lines
