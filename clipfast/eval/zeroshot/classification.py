"""Zero-shot classification of a labelled set."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from clipfast.eval.encoding import ImageEncoder
from clipfast.eval.intervals import clopper_pearson
from clipfast.eval.ranking import cosines
from clipfast.eval.readable import check_finite, readable_features
from clipfast.eval.setencoder import SetEncoder
from clipfast.eval.sets import LabelledSet
from clipfast.eval.sets.catalogue import find_entry
from clipfast.eval.sharing import Sharing
from clipfast.eval.zeroshot.answers import Answers, answers
from clipfast.eval.zeroshot.cache import ClassifierCache
from clipfast.eval.zeroshot.classifier import BARE, ONE_PROMPT, build_classifier
from clipfast.eval.zeroshot.examples import Example, pick_examples
from clipfast.eval.zeroshot.metrics import (
    average_precision,
    average_precision_11_points,
    confusion,
    mean_per_class_recall,
    most_confused,
    recall_per_class,
    roc_auc,
)

TASK = "zeroshot_classification"
# Sets with more classes have no table of confusions in their results.
_MOST_CONFUSED = 100
# Pairs of classes that are named, whatever their number.
_PAIRS = 50
_FEWEST_FOR_5 = 5
PROMPTS = ("names", "one prompt", "ensemble")

Metrics = dict[str, float | None]


@dataclass(frozen=True, eq=False)
class Judged:
    """What one classifier is worth.

    Attributes:
        metrics: by CLIP_benchmark's names where it has them; shares in [0, 1]. None: undefined for
            this set.
        intervals: Clopper-Pearson, 99.5%, of the metrics that are shares of images.
        per_class: of each class its name and what is known of it.
        confusion: images of a class (row) that were taken for a class (column); None for sets of
            many classes, or of several classes per image.
        most_confused: pairs of classes that are taken for each other most often.
        predicted: ``[N]`` int64, the answer on each image; None where images have several classes.
    """

    metrics: Metrics
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)
    per_class: list[dict[str, Any]] = field(default_factory=list)
    confusion: list[list[int]] | None = None
    most_confused: list[dict[str, Any]] = field(default_factory=list)
    predicted: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Classification:
    """Zero-shot classification of one set.

    Attributes:
        dataset: its name.
        split: of it.
        images: that were judged.
        unreadable: why others do not decode, by their places.
        metric: key of the metric that counts: the paper's for its data sets.
        templates: number of prompts of the ensemble.
        prompts: by "names", "one prompt" and "ensemble", what class names alone, in
            "a photo of a {c}.", and in the set's own prompts are worth.
        seconds: that images and texts took.
        examples: single images, as many as were asked for.
        places: ``[N]`` int64, of the images that were judged in their set.
        labels: of these images, as the set has them.
    """

    dataset: str
    split: str
    images: int
    unreadable: dict[int, str]
    metric: str
    templates: int
    prompts: dict[str, Judged]
    seconds: dict[str, float]
    examples: list[Example] = field(default_factory=list)
    places: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))
    labels: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))

    @property
    def main(self) -> Judged:
        """Of the set's own prompts."""
        return self.prompts["ensemble"]

    @property
    def images_per_second(self) -> float:
        """Images decoded and encoded per second, over all ranks."""
        return (self.images + len(self.unreadable)) / self.seconds["images"]

    def as_json(self) -> dict[str, Any]:
        """What stands in the results beside CLIP_benchmark's keys."""
        return {
            "split": self.split,
            "images": self.images,
            "unreadable": {str(place): reason for place, reason in self.unreadable.items()},
            "main_metric": self.metric,
            "templates": self.templates,
            "intervals": self.main.intervals,
            "prompts": {name: judged.metrics for name, judged in self.prompts.items()},
            "per_class": self.main.per_class,
            "confusion": self.main.confusion,
            "most_confused": self.main.most_confused,
            "seconds": self.seconds,
            "images_per_second": self.images_per_second,
        }


def classify(
    encoder: SetEncoder,
    images: LabelledSet,
    cache: ClassifierCache | None = None,
    examples: int = 0,
    asked: Sequence[str] = PROMPTS,
) -> Classification:
    """Classify the images of a set by its class names. A collective.

    Images are encoded once, and judged by three classifiers. Ranks share the judging too.

    Args:
        encoder: of the model.
        images: the set.
        cache: of classifiers, for an ``ImageEncoder``; None: each is built.
        examples: single images that are picked, at most.
        asked: which of the three; "ensemble" is among them.

    Returns:
        The same on every rank.

    Raises:
        ValueError: no image of the set decodes, or a feature is not finite.

    Source: Radford et al. 2021, section 3.1.
    """
    begin = time.perf_counter()
    ways = dict(zip(PROMPTS, (BARE, ONE_PROMPT, images.templates), strict=True))
    classifiers = {}
    for name in asked:
        if cache is not None and isinstance(encoder, ImageEncoder):
            built = cache.classifier(encoder, images.name, images.classnames, ways[name])
        else:
            built = build_classifier(encoder, images.classnames, ways[name])
        classifiers[name] = built
    between = time.perf_counter()
    found = readable_features(encoder, images)
    seconds = {"texts": between - begin, "images": time.perf_counter() - between}
    features, labels = found.features, torch.from_numpy(images.labels)[found.kept]
    places = found.kept.nonzero()[:, 0]
    for name, classifier in classifiers.items():
        check_finite(images.name, f"text ({name})", classifier)
    prompts = {
        name: _judged(encoder, features, classifier, labels, images.classnames)
        for name, classifier in classifiers.items()
    }
    return Classification(
        dataset=images.name,
        split=images.split,
        images=len(features),
        unreadable=found.unreadable,
        metric=_metric_of(images.name, prompts["ensemble"].metrics),
        templates=len(images.templates),
        prompts=prompts,
        seconds=seconds,
        examples=pick_examples(
            features,
            classifiers["ensemble"],
            labels,
            images.classnames,
            encoder.scale,
            places,
            examples,
        ),
        places=places,
        labels=labels,
    )


def _metric_of(dataset: str, metrics: Metrics) -> str:
    """The metric of the catalogue; the first where the set is not there or is of another kind."""
    entry = find_entry(dataset)
    if entry is not None and metrics.get(entry.metric) is not None:
        return entry.metric
    return next(iter(metrics))


def _judged(
    encoder: SetEncoder,
    features: Tensor,
    classifier: Tensor,
    labels: Tensor,
    names: Sequence[str],
) -> Judged:
    if labels.ndim == 2:
        return _judged_several(cosines(features, classifier), labels, names)
    classes = len(names)
    said = _answers(encoder.sharing, features, classifier, labels, encoder.scale)
    right = [int((said.rank < k).sum()) for k in (1, _FEWEST_FOR_5)]
    acc1, acc5 = (count / len(labels) for count in right)
    has_5 = classes >= _FEWEST_FOR_5
    metrics: Metrics = {
        "acc1": acc1,
        "acc5": acc5 if has_5 else None,
        "mean_per_class_recall": mean_per_class_recall(said.predicted, labels, classes),
        "mean_acc1_acc5": (acc1 + acc5) / 2 if has_5 else None,
        "log_loss": -said.log_probability.mean().item(),
    }
    if classes == 2:
        metrics["roc_auc"] = roc_auc(said.margin, labels == 1)
    intervals = {
        name: clopper_pearson(count, len(labels))
        for name, count in zip(("acc1", "acc5"), right, strict=True)
        if metrics[name] is not None
    }
    table = confusion(said.predicted, labels, classes) if classes <= _MOST_CONFUSED else None
    return Judged(
        metrics,
        intervals,
        _per_class(said.predicted, labels, names),
        None if table is None else table.tolist(),
        [
            {"class": names[row], "taken_for": names[column], "images": count}
            for row, column, count in most_confused(said.predicted, labels, classes, _PAIRS)
        ],
        said.predicted,
    )


def _answers(
    sharing: Sharing, features: Tensor, classifier: Tensor, labels: Tensor, scale: float
) -> Answers:
    """Each rank asks for its part of the images."""
    part = sharing.part(len(features))
    rows = slice(part.start, part.stop)
    mine = answers(features[rows], classifier, labels[rows], scale)
    gathered = {
        name: sharing.gather(getattr(mine, name), len(features))
        for name in ("predicted", "rank", "log_probability")
    }
    margin = sharing.gather(mine.margin, len(features)) if len(classifier) == 2 else mine.margin
    return Answers(labels=labels, margin=margin, **gathered)


def _per_class(predicted: Tensor, labels: Tensor, names: Sequence[str]) -> list[dict[str, Any]]:
    samples, right = (c.tolist() for c in recall_per_class(predicted, labels, len(names)))
    return [
        {
            "name": name,
            "images": of,
            "right": hits,
            "recall": hits / of if of else None,
            "interval": clopper_pearson(hits, of) if of else None,
        }
        for name, of, hits in zip(names, samples, right, strict=True)
    ]


def _judged_several(scores: Tensor, labels: Tensor, names: Sequence[str]) -> Judged:
    """Of images with several classes: each class is a search of its own."""
    columns = list(zip(scores.T, labels.T, strict=True))
    per_class: list[dict[str, Any]] = [
        {"name": of, "images": int(truth.sum())}
        for of, (_, truth) in zip(names, columns, strict=True)
    ]
    metrics: Metrics = {}
    for name, measure in (
        ("average_precision", average_precision),
        ("average_precision_11_points", average_precision_11_points),
    ):
        values = [measure(found, truth) for found, truth in columns]
        # A class without an image has none.
        known = [value for value in values if value is not None]
        metrics[f"mean_{name}"] = sum(known) / len(known) if known else None
        for entry, value in zip(per_class, values, strict=True):
            entry[name] = value
    return Judged(metrics, per_class=per_class)
