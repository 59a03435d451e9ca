"""A model and its pixels: features of the images of a set, and of texts."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor

from clipfast.arguments import whole_number
from clipfast.data.arguments import check_batch, check_device, check_dtype, check_place
from clipfast.devices import to_device
from clipfast.eval.decoding import ImageSet
from clipfast.eval.penultimate import both, penultimate
from clipfast.eval.pillow import PillowDecoder
from clipfast.eval.setencoder import Layer, SetEncoder, Squares
from clipfast.eval.sharing import Sharing
from clipfast.models import CLIP
from clipfast.preprocessing import Preprocessing

__all__ = ["ImageEncoder", "Layer", "Resize", "check_preprocessing"]

Resize = Literal["exact", "pillow"]


class ImageEncoder(SetEncoder):
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
        threads: of the CPU, that decode; None: 8 at most, and half of the cores where the model
            computes on them too.
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
        threads: int | None = None,
        resize: Resize = "exact",
    ) -> None:
        if resize not in ("exact", "pillow"):
            raise ValueError(f"resize must be 'exact' or 'pillow'; got {resize!r}")
        self.resize = resize
        super().__init__(
            check_preprocessing(preprocessing, model),
            model.config.captions.context_length,
            whole_number("batch_size", batch_size, 1),
            check_device(device),
            check_dtype(dtype),
            Sharing(*check_place(rank, world_size)),
            whole_number("threads", decode_threads(device) if threads is None else threads, 1),
        )
        self.model = model.to(self.device).eval()
        check_batch(batch_size, preprocessing.image_size, dtype, self.device)

    def alone(self) -> ImageEncoder:
        """An encoder of the same model that shares nothing: what it is given is this rank's."""
        encoder = copy.copy(self)
        encoder.sharing = Sharing()
        encoder.unreadable = {}
        return encoder

    @property
    def scale(self) -> float:
        """exp(logit_scale), the learned one."""
        return self.model.logit_scale.detach().float().exp().item()

    @torch.no_grad()
    def prepared(self, images: Tensor, layer: Layer = "projected") -> Tensor:
        """See ``SetEncoder``."""
        images = to_device(images, self.device)
        with self._autocast():
            if layer == "both":
                features = torch.cat(both(self.model, images), 1)
            elif layer == "penultimate":
                features = penultimate(self.model, images)
            else:
                features = self.model.encode_image(images)
        return features.float().cpu()

    @torch.no_grad()
    def tokens(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """See ``SetEncoder``."""
        with self._autocast():
            encoded = self.model.encode_text(to_device(tokens, self.device), lengths)
        return encoded.float().cpu()

    def _decoder(self, images: ImageSet, part: range) -> Squares:
        size = self.preprocessing.image_size
        if self.resize == "pillow":
            return PillowDecoder(images, part, self.batch_size, size, self.threads)
        return super()._decoder(images, part)

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


def decode_threads(device: torch.device | str) -> int:
    """Threads that decode beside a model.

    On a CPU each of the model's products waits for its slowest thread: with as many threads that
    decode as cores, RN-tiny took 1.4 times as long for the images of CIFAR-10.

    Args:
        device: where the model computes.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    shared = (cores or 1) // 2 if torch.device(device).type == "cpu" else cores or 1
    return max(1, min(8, shared))
