"""What both sides classify: a labelled set, and a model twice with the same weights."""

from __future__ import annotations

import copy
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from benchmarks.parts.common.peers import build_pair, open_clip_config
from benchmarks.peers import import_open_clip
from clipfast.data import ShardReader
from clipfast.data.order import EpochOrder
from clipfast.data.shards import counts, expand
from clipfast.eval.models import load_model
from clipfast.eval.sets import LabelledSet, open_set
from clipfast.models import CLIP

SAMPLE = "emoji-captions"
_SHARDS = "sample/noto"
_PROMPTS = ("{c}", "a photo of {c}.", "a drawing of {c}.", "an emoji of {c}.")


@dataclass(frozen=True, eq=False)
class Problem:
    """One case.

    Attributes:
        images: the set.
        model: its name.
        weights: where they are from.
        ours: the model.
        theirs: OpenCLIP's, with the same weights.
    """

    images: LabelledSet
    model: str
    weights: str
    ours: CLIP
    theirs: nn.Module


def labelled(source: str, limit: int | None) -> LabelledSet:
    """A set, at most its first images.

    Args:
        source: what ``open_set`` takes, or ``SAMPLE``: the packaged emoji, each of its captions a
            class.
        limit: of images; None: all.

    Raises:
        ValueError: see ``open_set``.
    """
    if source == SAMPLE:
        return _emoji(limit)
    images = open_set(source)
    if limit is None or limit >= len(images):
        return images
    return replace(images, labels=images.labels[:limit], attributes={})


def _emoji(limit: int | None) -> LabelledSet:
    """Emoji whose classes are their own captions."""
    shards = expand(_SHARDS)
    found = min(int(counts(shards).sum()), limit or sys.maxsize)
    places = EpochOrder(counts(shards), shuffle=False).locate(0, 0, found)
    reader = ShardReader(shards)
    at = list(zip(places.shard.tolist(), places.row.tolist(), strict=True))
    captions = [reader.caption(*place) for place in at]
    number = {caption: i for i, caption in enumerate(dict.fromkeys(captions))}
    return LabelledSet(
        name=SAMPLE,
        split="noto",
        classnames=tuple(number),
        templates=_PROMPTS,
        labels=np.array([number[caption] for caption in captions], dtype=np.int64),
        encoded=lambda i: reader.image(*at[i]),
    )


def make_problem(images: LabelledSet, model: str | None, weights: Path | None) -> Problem:
    """The model twice.

    Args:
        images: the set.
        model: name, with random weights where there is no file of them.
        weights: a file or a run's folder.

    Raises:
        ValueError: the weights cannot be read, or OpenCLIP's model has other tensors.
    """
    if weights is None:
        assert model is not None
        ours, theirs = build_pair(model)
        return Problem(images, model, "random", ours.eval(), theirs.eval())
    loaded = load_model(model, weights)
    config = loaded.model.config
    theirs = import_open_clip().model.CLIP(
        **open_clip_config(
            loaded.name,
            image_size=config.vision.image_size,
            context_length=config.text.context_length,
        )
    )
    state = copy.deepcopy(loaded.model.state_dict())
    state["logit_scale"] = state["logit_scale"].reshape(theirs.logit_scale.shape)
    # Says which tensors are missing or too many.
    theirs.load_state_dict(state)
    return Problem(images, loaded.name, weights.name, loaded.model, theirs.eval())


def image_size(problem: Problem) -> int:
    """Side of the squares that the model reads, in pixels."""
    size: int = problem.ours.config.vision.image_size
    return size


def set_threads(threads: int) -> int:
    """Threads of torch's operators.

    Returns:
        How many there were.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    return before
