"""Features of the images of a set that decode."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from clipfast.eval.decoding import ImageSet
from clipfast.eval.setencoder import SetEncoder


@dataclass(frozen=True, eq=False)
class Readable:
    """What was encoded.

    Attributes:
        features: ``[n, D]`` float32, of the images that decode.
        kept: ``[N]`` bool, which these are.
        unreadable: why others do not decode, by their places.
    """

    features: Tensor
    kept: Tensor
    unreadable: dict[int, str]


def readable_features(encoder: SetEncoder, images: ImageSet) -> Readable:
    """Encode a set and leave out what does not decode. A collective.

    Args:
        encoder: of the model.
        images: the set.

    Raises:
        ValueError: the set is empty, none of its images decodes, or a feature is not finite.
    """
    features = encoder.images(images)
    unreadable = dict(encoder.unreadable)
    kept = torch.ones(len(images), dtype=torch.bool)
    kept[list(unreadable)] = False
    if not kept.any():
        raise ValueError(
            f"{images.name}: none of {len(images)} images decodes; the first: "
            f"{unreadable[min(unreadable)]}"
        )
    features = features[kept]
    check_finite(images.name, "image", features)
    return Readable(features, kept, unreadable)


def check_finite(dataset: str, what: str, features: Tensor) -> None:
    """Refuse features that are no numbers.

    Args:
        dataset: name of the set.
        what: was encoded, for the message.
        features: ``[n, D]``.

    Raises:
        ValueError: a feature is not finite.
    """
    broken = int((~features.isfinite().all(1)).sum())
    if broken:
        raise ValueError(
            f"{dataset}: {broken} {what} features of {len(features)} are not finite: the weights "
            "are of a run that diverged, or overflow in this precision (--precision fp32)"
        )
