"""How ranks share the images of a set, or texts, whatever encodes them."""

from __future__ import annotations

import logging
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from typing import Literal, Protocol, TypeVar

import torch
from torch import Tensor
from tqdm import tqdm

from clipfast.data.pixels import normalised
from clipfast.devices import to_device
from clipfast.eval.decoding import ImageSet, SetDecoder, named
from clipfast.eval.sharing import Sharing
from clipfast.preprocessing import Preprocessing
from clipfast.tokenizer import tokenize_with_lengths

Layer = Literal["projected", "penultimate", "both"]
_Batch = TypeVar("_Batch")
_log = logging.getLogger(__name__)


class Squares(Protocol):
    """Decodes one rank's part of a set.

    Attributes:
        unreadable: by place, why an image does not decode; complete at the end.
    """

    unreadable: dict[int, str]

    def __iter__(self) -> Generator[Tensor, None, None]:
        """Batches ``[B, S, S, 3]`` uint8."""
        ...


class SetEncoder(ABC):
    """Encodes the images of sets, and texts. Ranks share the samples of one set.

    Each rank takes one contiguous part, sizes differ by one at most. All ranks make the same number
    of forwards: under ZeRO-3 each forward gathers parameters from all of them. A rank with a batch
    less encodes one twice.

    Images are decoded as ``clipfast.data.EvalLoader`` does it: upright, RGB, the square in the
    middle, resized once with an antialiased bicubic filter.

    Args:
        preprocessing: how its images are prepared.
        context_length: of the text tower.
        batch_size: images, or texts, that one rank encodes at a time.
        device: where it computes.
        dtype: of the pixels.
        sharing: this rank among the others.
        threads: of the CPU, that decode.
        shows_progress: bars on rank 0, where there is a terminal.

    Attributes:
        unreadable: of the last set, why images do not decode, by their places.
    """

    def __init__(
        self,
        preprocessing: Preprocessing,
        context_length: int,
        batch_size: int,
        device: torch.device,
        dtype: torch.dtype,
        sharing: Sharing,
        threads: int,
        *,
        shows_progress: bool = True,
    ) -> None:
        self.preprocessing = preprocessing
        self.context_length = context_length
        self.batch_size = batch_size
        self.device = device
        self.dtype = dtype
        self.sharing = sharing
        self.threads = threads
        self.unreadable: dict[int, str] = {}
        self._shows_progress = shows_progress

    @property
    @abstractmethod
    def scale(self) -> float:
        """exp(logit_scale), the learned one."""

    @abstractmethod
    def prepared(self, images: Tensor, layer: Layer = "projected") -> Tensor:
        """Features of images that are normalised already.

        Args:
            images: ``[B, 3, S, S]``, as ``clipfast.preprocess`` gives them.
            layer: see ``images``.

        Returns:
            ``[B, D]`` float32 on the CPU.
        """

    @abstractmethod
    def tokens(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """Features of tokenized texts.

        Args:
            tokens: ``[B, L]`` int64 on the CPU.
            lengths: ``[B]`` int64 on the CPU.

        Returns:
            ``[B, D]`` float32 on the CPU.
        """

    def between(self) -> None:  # noqa: B027 - most have nothing to ask
        """Called before each batch, by all ranks alike."""

    def alive(self) -> None:  # noqa: B027 - most are watched by nobody
        """Says that this rank goes on, in work that is its own."""

    @torch.no_grad()
    def images(self, images: ImageSet, layer: Layer = "projected") -> Tensor:
        """Features of all images of a set. A collective.

        Args:
            images: a ``LabelledSet`` or a ``CaptionedSet``.
            layer: "projected" are the features that are compared with texts. "penultimate" are
                those before the last projection, for probes. "both" are these side by side, of one
                pass.

        Returns:
            ``[N, D]`` float32 on the CPU, in the order of the set, not normalised, the same on
            every rank. Rows of images that do not decode are NaN, and ``unreadable`` says why.

        Raises:
            ValueError: the set is empty, or the image tower has no layer of that name.
        """
        if not len(images):
            raise ValueError(f"{images.name} holds no image: there is nothing to encode")
        part = self.sharing.part(len(images))
        decoder = self._decoder(images, part)
        size = self.preprocessing.image_size
        blank = torch.zeros(1, size, size, 3, dtype=torch.uint8)
        with self._bar(images.name, len(images), "image") as bar:
            mine = self._in_step(
                iter(decoder),
                blank,
                lambda crops: self.pixels(crops, layer),
                len(images),
                bar,
            )
        for place in decoder.unreadable:
            mine[place - part.start] = torch.nan
        self.unreadable = {}
        for found in self.sharing.gather_objects(decoder.unreadable):
            self.unreadable.update(found)
        if self.unreadable and self.sharing.rank == 0:
            _log.warning(
                "%s: %d of %d images do not decode and are left out: %s",
                images.name,
                len(self.unreadable),
                len(images),
                "; ".join(named(self.unreadable)),
            )
        return self.sharing.gather(mine, len(images))

    @torch.no_grad()
    def pixels(self, crops: Tensor, layer: Layer = "projected") -> Tensor:
        """Features of squares.

        Args:
            crops: ``[B, S, S, 3]`` uint8.
            layer: see ``images``.

        Returns:
            ``[B, D]`` float32 on the CPU.
        """
        prepared = self.preprocessing
        images = normalised(
            to_device(crops.contiguous(), self.device), self.dtype, prepared.mean, prepared.std
        )
        return self.prepared(images, layer)

    @torch.no_grad()
    def texts(self, texts: Sequence[str]) -> Tensor:
        """Features of texts, each distinct one encoded once. A collective.

        Args:
            texts: T of them, cut to the model's context.

        Returns:
            ``[T, D]`` float32 on the CPU, not normalised, the same on every rank.
        """
        place = {text: i for i, text in enumerate(dict.fromkeys(texts))}
        distinct = list(place)
        part = self.sharing.part(len(distinct))
        mine = distinct[part.start : part.stop]

        def encoded(batch: list[str]) -> Tensor:
            tokens, lengths = tokenize_with_lengths(batch, self.context_length)
            return self.tokens(tokens[:, : int(lengths.max())], lengths)

        batches = (
            mine[start : start + self.batch_size] for start in range(0, len(mine), self.batch_size)
        )
        with self._bar("texts", len(distinct), "text") as bar:
            features = self._in_step(batches, [""], encoded, len(distinct), bar)
        every = self.sharing.gather(features, len(distinct))
        return every[[place[text] for text in texts]]

    def forwards(self, rows: int) -> int:
        """Batches that every rank encodes of a set, one at least.

        Args:
            rows: of the set.
        """
        longest = math.ceil(rows / self.sharing.world_size)
        return max(1, math.ceil(longest / self.batch_size))

    def _in_step(
        self,
        batches: Generator[_Batch, None, None],
        blank: _Batch,
        encode: Callable[[_Batch], Tensor],
        rows: int,
        bar: tqdm,
    ) -> Tensor:
        """Encode this rank's batches, in as many forwards as every other rank makes.

        Args:
            batches: of this rank; may be none.
            blank: a batch for a rank that has none.
            encode: features of a batch.
            rows: of the whole set.
            bar: shows how far it is.
        """
        features: list[Tensor] = []
        encoded, last, missing = torch.empty(0), blank, 0
        with closing(batches):
            for _ in range(self.forwards(rows)):
                self.between()
                fresh = next(batches, None)
                last = last if fresh is None else fresh
                encoded = encode(last)
                if fresh is None:
                    missing += 1
                    continue
                features.append(encoded)
                bar.update(len(encoded) * self.sharing.world_size)
        # No rank waits for another by more than one batch.
        assert missing <= 1, f"{missing} batches less than other ranks"
        return torch.cat(features) if features else encoded[:0]

    def _decoder(self, images: ImageSet, part: range) -> Squares:
        size = self.preprocessing.image_size
        return SetDecoder(images, part, self.batch_size, size, self.device, self.threads)

    def _bar(self, what: str, total: int, unit: str) -> tqdm:
        quiet = self.sharing.rank or not self._shows_progress
        return tqdm(total=total, desc=what, unit=unit, leave=False, disable=True if quiet else None)
