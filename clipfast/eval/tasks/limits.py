"""A part of a set, for measures that are to be quick."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from clipfast.eval.sets import CaptionedSet, LabelledSet

_SEED = 0


def drawn(images: int, limit: int) -> np.ndarray:
    """Places of a random part, ascending; the same on every rank and in every run.

    Args:
        images: how many there are.
        limit: how many are drawn, at most; 0: all.
    """
    if not limit or limit >= images:
        return np.arange(images)
    return np.sort(np.random.default_rng(_SEED).permutation(images)[:limit])


def labelled_part(images: LabelledSet, places: np.ndarray) -> LabelledSet:
    """Some images of a set.

    Args:
        images: the set.
        places: of those that are kept, ascending.
    """
    if len(places) == len(images):
        return images
    return replace(
        images,
        labels=images.labels[places],
        encoded=lambda i: images.encoded(int(places[i])),
        attributes={name: column[places] for name, column in images.attributes.items()},
    )


def captioned_part(images: CaptionedSet, places: np.ndarray) -> CaptionedSet:
    """Some images of a set, each with all its captions.

    Args:
        images: the set.
        places: of those that are kept, ascending.
    """
    if len(places) == len(images):
        return images
    number = np.full(len(images), -1, np.int64)
    number[places] = np.arange(len(places))
    image_of = number[images.image_of]
    kept = np.flatnonzero(image_of >= 0)
    return replace(
        images,
        encoded=lambda i: images.encoded(int(places[i])),
        captions=[images.captions[i] for i in kept.tolist()],
        image_of=image_of[kept],
    )
