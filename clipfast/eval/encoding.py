"""A model and its pixels: features of the images of a set, and of texts."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor
from tqdm import tqdm

from clipfast.arguments import whole_number
from clipfast.data.arguments import check_batch, check_device, check_dtype, check_place
from clipfast.data.pixels import normalised
from clipfast.devices import to_device
from clipfast.eval.decoding import ImageSet, SetDecoder, named
from clipfast.eval.penultimate import penultimate
from clipfast.eval.pillow import PillowDecoder
from clipfast.eval.sharing import Sharing
from clipfast.models import CLIP
from clipfast.preprocessing import Preprocessing
from clipfast.tokenizer import tokenize_with_lengths

Layer = Literal["projected", "penultimate"]
Resize = Literal["exact", "pillow"]
_log = logging.getLogger(__name__)


class ImageEncoder:
    """Encodes images and texts; several ranks share the samples of one set.

    Images are decoded as ``clipfast.data.EvalLoader`` does it: upright, RGB, the square in the
    middle, resized once with an antialiased bicubic filter.

    Args:
        model: in evaluation mode; it is moved to the device.
        preprocessing: how its images are prepared.
        batch_size: images, or texts, that one rank encodes at a time.
        device: where it computes.
        dtype: it computes in; other than float32 under autocast.
        rank: this one.
        world_size: number of ranks; beyond 1 torch's process group must be there.
        threads: of the CPU, that decode.
        resize: "exact" is that of ``EvalLoader``. "pillow" gives the pixels of torchvision's
            transforms, which OpenCLIP and CLIP_benchmark have.

    Attributes:
        unreadable: of the last set, why images do not decode, by their places.

    Raises:
        ValueError: an argument is out of its range, or images are prepared in a way that is not
            known here.
    """

    def __init__(
        self,
        model: CLIP,
        preprocessing: Preprocessing,
        batch_size: int = 64,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        rank: int = 0,
        world_size: int = 1,
        threads: int = 2,
        resize: Resize = "exact",
    ) -> None:
        if resize not in ("exact", "pillow"):
            raise ValueError(f"resize must be 'exact' or 'pillow'; got {resize!r}")
        self.resize = resize
        self.device = check_device(device)
        self.dtype = check_dtype(dtype)
        self.batch_size = whole_number("batch_size", batch_size, 1)
        self.threads = whole_number("threads", threads, 1)
        self.sharing = Sharing(*check_place(rank, world_size))
        self.model = model.to(self.device).eval()
        self.preprocessing = check_preprocessing(preprocessing, model)
        self.unreadable: dict[int, str] = {}
        check_batch(batch_size, preprocessing.image_size, dtype, self.device)

    def alone(self) -> ImageEncoder:
        """An encoder of the same model that shares nothing: what it is given is this rank's."""
        encoder = copy.copy(self)
        encoder.sharing = Sharing()
        encoder.unreadable = {}
        return encoder

    @torch.no_grad()
    def images(self, images: ImageSet, layer: Layer = "projected") -> Tensor:
        """Features of all images of a set. A collective.

        Args:
            images: a ``LabelledSet`` or a ``CaptionedSet``.
            layer: "projected" are the features that are compared with texts. "penultimate" are
                those before the last projection, for probes.

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
        features = []
        with self._bar(images.name, len(images), "image") as bar:
            for crops in decoder:
                features.append(self.pixels(crops, layer))
                bar.update(len(crops) * self.sharing.world_size)
        width = self._width(layer)
        mine = torch.cat(features) if features else torch.empty(0, width)
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
    def prepared(self, images: Tensor, layer: Layer = "projected") -> Tensor:
        """Features of images that are normalised already.

        Args:
            images: ``[B, 3, S, S]``, as ``clipfast.preprocess`` gives them.
            layer: see ``images``.

        Returns:
            ``[B, D]`` float32 on the CPU.
        """
        images = to_device(images, self.device)
        with self._autocast():
            if layer == "penultimate":
                features = penultimate(self.model, images)
            else:
                features = self.model.encode_image(images)
        return features.float().cpu()

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
        mine = [distinct[i] for i in self.sharing.part(len(distinct))]
        context = self.model.config.text.context_length
        features = [torch.empty(0, self.model.config.embed_dim)]
        with self._bar("texts", len(distinct), "text") as bar:
            for start in range(0, len(mine), self.batch_size):
                tokens, lengths = tokenize_with_lengths(
                    mine[start : start + self.batch_size], context
                )
                tokens = tokens[:, : int(lengths.max())]
                with self._autocast():
                    encoded = self.model.encode_text(to_device(tokens, self.device), lengths)
                features.append(encoded.float().cpu())
                bar.update(len(encoded) * self.sharing.world_size)
        every = self.sharing.gather(torch.cat(features), len(distinct))
        return every[[place[text] for text in texts]]

    def _decoder(self, images: ImageSet, part: range) -> SetDecoder | PillowDecoder:
        size = self.preprocessing.image_size
        if self.resize == "pillow":
            return PillowDecoder(images, part, self.batch_size, size, self.threads)
        return SetDecoder(images, part, self.batch_size, size, self.device, self.threads)

    def _width(self, layer: Layer) -> int:
        if layer == "projected":
            return self.model.config.embed_dim
        size = self.preprocessing.image_size
        return self.pixels(torch.zeros(1, size, size, 3, dtype=torch.uint8), layer).shape[1]

    def _bar(self, what: str, total: int, unit: str) -> tqdm:
        return tqdm(
            total=total,
            desc=what,
            unit=unit,
            leave=False,
            disable=True if self.sharing.rank else None,
        )

    @contextmanager
    def _autocast(self) -> Iterator[None]:
        enabled = self.dtype != torch.float32
        with torch.autocast(self.device.type, self.dtype, enabled=enabled):
            yield


def check_preprocessing(preprocessing: Preprocessing, model: CLIP) -> Preprocessing:
    """Refuse pixels that the decoder would not make, or the model not read.

    Args:
        preprocessing: as the weights tell.
        model: that reads them.

    Raises:
        ValueError: with what is wrong and what is known.
    """
    for name, known in (("interpolation", "bicubic"), ("resize_mode", "shortest")):
        said = getattr(preprocessing, name)
        if said != known:
            raise ValueError(
                f"the weights were trained with {name} {said!r}, and images are prepared with "
                f"{known!r} here: pass Preprocessing(..., {name}={known!r}) to evaluate them so "
                "all the same"
            )
    wanted = model.config.vision.image_size
    if preprocessing.image_size != wanted:
        raise ValueError(
            f"images are prepared at {preprocessing.image_size} pixels, and the model reads "
            f"{wanted}: create it with image_size={preprocessing.image_size}"
        )
    return preprocessing
