"""Zero-shot predictions for single images."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from clipfast.eval.encoding import ImageEncoder
from clipfast.eval.models import LoadedModel
from clipfast.eval.single import preprocess
from clipfast.eval.zeroshot.classifier import ONE_PROMPT, build_classifier
from clipfast.models import CLIP
from clipfast.preprocessing import Preprocessing


class ZeroShot:
    """A classifier from names alone.

        classify = clipfast.ZeroShot(model, ["cat", "dog"])
        classify.predict(["a.jpg", "b.png"])        # [2, 2], rows add to 1

    Args:
        model: in any mode; it is put into evaluation mode, and moved to the device.
        names: C class names.
        templates: prompts, each with the slot ``{c}``.
        batch_size: images, or texts, at a time.
        device: where it computes; None: where the model is.
        dtype: it computes in; other than float32 under autocast.

    Attributes:
        names: the class names.
        weights: of the classifier, ``[C, D]`` float32 on the CPU, rows of length 1.
        scale: exp(logit_scale), the learned one.

    Raises:
        ValueError: see ``build_classifier`` and ``preprocess``.
    """

    def __init__(
        self,
        model: CLIP | LoadedModel,
        names: Sequence[str],
        templates: Sequence[str] = ONE_PROMPT,
        *,
        batch_size: int = 64,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        tower = model.model if isinstance(model, LoadedModel) else model
        preprocessing = (
            model.preprocessing
            if isinstance(model, LoadedModel)
            else Preprocessing(tower.config.vision.image_size)
        )
        place = tower.logit_scale.device if device is None else device
        self._encoder = ImageEncoder(tower, preprocessing, batch_size, place, dtype)
        self._prepare = preprocess(model)
        self.names = tuple(names)
        self.weights = build_classifier(self._encoder, names, templates)
        self.scale = tower.logit_scale.detach().float().exp().item()

    @torch.no_grad()
    def predict(self, images: Iterable[Any] | Tensor) -> Tensor:
        """Probabilities of the classes.

            p = softmax(scale * cos(image, w_c))

        Args:
            images: any number of what ``clipfast.preprocess`` takes; or a tensor
                ``[B, 3, S, S]`` of floats that is normalised already.

        Returns:
            ``[B, C]`` float32 on the CPU, rows add to 1.

        Raises:
            ValueError: an image cannot be read.
        """
        if isinstance(images, Tensor) and images.is_floating_point():
            batches: Iterable[Tensor] = images.split(self._encoder.batch_size)
        else:
            batches = self._prepared(images)
        rows = [torch.empty(0, len(self.names))]
        for batch in batches:
            features = F.normalize(self._encoder.prepared(batch), dim=-1)
            rows.append((self.scale * features @ self.weights.T).softmax(-1))
        return torch.cat(rows)

    def _prepared(self, images: Iterable[Any]) -> Iterable[Tensor]:
        batch = []
        for image in images:
            batch.append(self._prepare(image))
            if len(batch) == self._encoder.batch_size:
                yield torch.stack(batch)
                batch = []
        if batch:
            yield torch.stack(batch)
