"""Retrieval on images with several captions each: Flickr30k, COCO and their like."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from clipfast.eval.intervals import clopper_pearson
from clipfast.eval.ranking import RECALL_AT, chance, right_ranks
from clipfast.eval.setencoder import SetEncoder
from clipfast.eval.sets import CaptionedSet

TASK = "zeroshot_retrieval"
# Radford et al. 2021, appendix E.1: it helps by 1 to 2 points.
PREFIX = "a photo of "
_WAYS = {"image_retrieval": "text to image", "text_retrieval": "image to text"}


@dataclass(frozen=True)
class Recalls:
    """Shares of queries with a right answer among the first K.

    Attributes:
        metrics: ``image_retrieval_recall@K`` of captions that look for their image,
            ``text_retrieval_recall@K`` of images that look for one of their captions.
        intervals: of each, Clopper-Pearson at 99.5%.
    """

    metrics: Mapping[str, float]
    intervals: Mapping[str, tuple[float, float]]


@dataclass(frozen=True)
class CaptionRetrieval:
    """What a model finds in a set of captions.

    Attributes:
        dataset, split: of the set.
        images: that decode.
        captions: of these.
        prefix: put before each caption; None: not measured.
        main: with the captions as they are.
        prefixed: with the prefix; None without one.
        chance: recalls of a random order, named as the metrics.
        unreadable: images that do not decode, by their places: left out, with their captions.
        seconds: for images, texts and ranks.
    """

    dataset: str
    split: str
    images: int
    captions: int
    prefix: str | None
    main: Recalls
    prefixed: Recalls | None
    chance: Mapping[str, float]
    unreadable: Mapping[int, str] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """What stands beside CLIP_benchmark's keys."""
        prefixed = self.prefixed and {
            "prefix": self.prefix,
            "metrics": dict(self.prefixed.metrics),
            "intervals": dict(self.prefixed.intervals),
        }
        return {
            "split": self.split,
            "images": self.images,
            "captions": self.captions,
            "intervals": dict(self.main.intervals),
            "with_prefix": prefixed,
            "chance": dict(self.chance),
            "unreadable": {str(place): why for place, why in self.unreadable.items()},
            "seconds": dict(self.seconds),
        }


def retrieve(
    encoder: SetEncoder, captioned: CaptionedSet, prefix: str | None = PREFIX
) -> CaptionRetrieval:
    """Rank the captions of every image, and the images of every caption. A collective.

    Candidates of equal similarity keep their order, so that a model that gives one answer to all
    scores chance. An image counts as found by any of its own captions; equal captions of other
    images are wrong answers, as in the published figures.

    Args:
        encoder: of the model.
        captioned: the set.
        prefix: put before each caption for a second measure; None: there is none.

    Raises:
        ValueError: no image decodes.
    """
    began = time.perf_counter()
    images = encoder.images(captioned)
    unreadable = dict(encoder.unreadable)
    encoded = time.perf_counter()
    images, captions, image_of = _readable(images, captioned, unreadable)
    bare = encoder.texts(captions)
    prefixed = None if prefix is None else encoder.texts([prefix + text for text in captions])
    read = time.perf_counter()
    pairs = torch.stack([torch.arange(len(captions)), image_of], 1)
    main = _recalls(encoder, images, bare, pairs)
    with_prefix = None if prefixed is None else _recalls(encoder, images, prefixed, pairs)
    expected = {
        f"image_retrieval_recall@{k}": chance(pairs, len(images))[f"R@{k}"] for k in RECALL_AT
    } | {
        f"text_retrieval_recall@{k}": chance(pairs.flip(1), len(captions))[f"R@{k}"]
        for k in RECALL_AT
    }
    return CaptionRetrieval(
        captioned.name,
        captioned.split,
        len(images),
        len(captions),
        prefix,
        main,
        with_prefix,
        chance=expected,
        unreadable=unreadable,
        seconds={
            "images": encoded - began,
            "texts": read - encoded,
            "ranks": time.perf_counter() - read,
        },
    )


def table(found: CaptionRetrieval) -> list[str]:
    """Lines for a person.

    Args:
        found: of one set.
    """
    lines = [
        f"{found.dataset} ({found.split}, {found.images:,} images, {found.captions:,} captions)",
        f"{'':28}" + "".join(f"{f'R@{k}':>9}" for k in RECALL_AT),
    ]
    rows = {"": found.main.metrics}
    if found.prefix is not None and found.prefixed is not None:
        rows[f", {found.prefix.strip()!r} before"] = found.prefixed.metrics
    rows[", chance"] = found.chance
    for way, words in _WAYS.items():
        for more, metrics in rows.items():
            cells = "".join(f"{metrics[f'{way}_recall@{k}']:>9.2%}" for k in RECALL_AT)
            lines.append(f"{words + more:28}{cells}")
    for name, (low, high) in found.main.intervals.items():
        if name.endswith("@1"):
            lines.append(f"{name}: {low:.2%} to {high:.2%} (99.5%, Clopper-Pearson)")
    if found.unreadable:
        lines.append(f"{len(found.unreadable)} image(s) do not decode: left out, with captions")
    spent = ", ".join(f"{value:.1f} s for {name}" for name, value in found.seconds.items())
    return [*lines, spent]


def _readable(
    images: Tensor, captioned: CaptionedSet, unreadable: Mapping[int, str]
) -> tuple[Tensor, list[str], Tensor]:
    """Features, captions, and the image of each caption, of the images that decode."""
    keep = np.ones(len(images), bool)
    keep[list(unreadable)] = False
    if not keep.any():
        raise ValueError(f"{captioned.name}: no image decodes: {next(iter(unreadable.values()))}")
    number = np.cumsum(keep) - 1
    kept = [i for i, image in enumerate(captioned.image_of.tolist()) if keep[image]]
    captions = [captioned.captions[i] for i in kept]
    image_of = torch.from_numpy(number[captioned.image_of[kept]])
    return images[torch.from_numpy(keep)], captions, image_of


def _recalls(encoder: SetEncoder, images: Tensor, texts: Tensor, pairs: Tensor) -> Recalls:
    """Both ways; the ranks share the queries.

    Args:
        pairs: ``[T, 2]`` int64, a caption and its image.
    """
    ways = {
        "image_retrieval": (texts, images, pairs),
        "text_retrieval": (images, texts, pairs.flip(1)),
    }
    metrics, intervals = {}, {}
    for way, (queries, candidates, right) in ways.items():
        part = encoder.sharing.part(len(queries))
        mine = right[(right[:, 0] >= part.start) & (right[:, 0] < part.stop)]
        mine = mine - torch.tensor([part.start, 0])
        device = encoder.device
        ranks = right_ranks(
            queries[part.start : part.stop].to(device), candidates.to(device), mine
        ).cpu()
        every = encoder.sharing.gather(ranks, len(queries))
        for k in RECALL_AT:
            hits = int((every < k).sum())
            metrics[f"{way}_recall@{k}"] = hits / len(queries)
            intervals[f"{way}_recall@{k}"] = clopper_pearson(hits, len(queries))
    return Recalls(metrics, intervals)
