"""An encoder that several tasks share: each set goes through the image tower once."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from torch import Tensor

from clipfast.eval.decoding import ImageSet
from clipfast.eval.encoding import ImageEncoder, Layer
from clipfast.eval.hashes import hash_of_some
from clipfast.eval.penultimate import has_penultimate
from clipfast.eval.sets import LabelledSet

# Features that are held: of 400,000 images of 1,280 numbers.
_MOST_BYTES = 2 << 30
# Both layers of more images would be too much memory at once.
_MOST_IMAGES = 250_000


class RememberingEncoder(ImageEncoder):
    """Gives the features of a labelled set again without encoding it again.

    Within ``both_layers`` a set of up to 250,000 images is encoded to both layers at once, so that
    zero-shot and probes need one pass. Up to 2 GiB of features are held, and the oldest leave.

    Args:
        arguments: those of ``ImageEncoder``.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._held: dict[tuple[str, Layer], tuple[Tensor, dict[int, str]]] = {}
        self._takes_both = False

    def images(self, images: ImageSet, layer: Layer = "projected") -> Tensor:
        """See ``SetEncoder.images``."""
        if not isinstance(images, LabelledSet) or layer == "both":
            return super().images(images, layer)
        key = _key(images)
        found = self._held.get((key, layer))
        if found is None:
            if not self._takes_both or len(images) > _MOST_IMAGES:
                self._hold(key, layer, super().images(images, layer))
            else:
                every = super().images(images, "both")
                width = self.model.config.embed_dim
                self._hold(key, "projected", every[:, :width].contiguous())
                self._hold(key, "penultimate", every[:, width:].contiguous())
            found = self._held[key, layer]
        features, unreadable = found
        self.unreadable = dict(unreadable)
        self._forget_oldest()
        return features

    def forget(self) -> None:
        """Let go of all features."""
        self._held.clear()

    @contextmanager
    def both_layers(self, takes_both: bool) -> Iterator[None]:
        """Within it each pass gives both layers.

        Args:
            takes_both: whether it does. A tower that does not tell its layers gives one.
        """
        before = self._takes_both
        self._takes_both = takes_both and has_penultimate(self.model)
        try:
            yield
        finally:
            self._takes_both = before

    def _hold(self, key: str, layer: Layer, features: Tensor) -> None:
        self._held[key, layer] = features, dict(self.unreadable)

    def _forget_oldest(self) -> None:
        """Ranks hold the same, so that all of them encode a set, or none."""
        total = sum(features.nbytes for features, _ in self._held.values())
        for name in list(self._held):
            if total <= _MOST_BYTES:
                return
            total -= self._held.pop(name)[0].nbytes


def _key(images: LabelledSet) -> str:
    labels = hashlib.sha256(np.ascontiguousarray(images.labels).tobytes()).hexdigest()
    return f"{images.name} {images.split} {len(images)} {labels} {hash_of_some(images)}"
