"""What features depend on, as one word: caches are named by it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from clipfast.eval.sets import LabelledSet
from clipfast.models import CLIP

LOOKED_AT = 16  # images whose bytes count, spread over the set


def image_hash(model: CLIP) -> str:
    """SHA-256 of all that the features of images depend on.

    Args:
        model: with its weights; the text tower and the temperature do not count.
    """
    config = model.config
    about = f"{config.vision} {config.activation} {config.embed_dim}"
    return _hash(about, model.visual.state_dict())


def text_hash(model: CLIP) -> str:
    """SHA-256 of all that the features of texts depend on.

    Args:
        model: with its weights; the image tower and the temperature do not count.
    """
    config = model.config
    about = f"{config.text} {config.activation} {config.embed_dim}"
    state = model.state_dict().items()
    others = {n: v for n, v in state if not n.startswith("visual.") and n != "logit_scale"}
    return _hash(about, others)


def hash_of_some(images: LabelledSet) -> str:
    """SHA-256 of the files of 16 images of a set.

    Args:
        images: the set.
    """
    digest = hashlib.sha256()
    for place in np.unique(np.linspace(0, len(images) - 1, LOOKED_AT).astype(int)):
        digest.update(images.encoded(int(place)))
    return digest.hexdigest()


def _hash(about: str, weights: Mapping[str, Any]) -> str:
    digest = hashlib.sha256(about.encode())
    for name, value in sorted(weights.items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()
