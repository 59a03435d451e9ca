"""Zero-shot classification, group by group."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from clipfast.eval.groups.columns import Column
from clipfast.eval.groups.disparity import Disparity, disparity
from clipfast.eval.intervals import clopper_pearson
from clipfast.eval.ranking import cosines
from clipfast.eval.zeroshot.answers import Answers, answers
from clipfast.eval.zeroshot.metrics import (
    average_precision,
    average_precision_11_points,
    mean_per_class_recall,
)

_FEWEST_FOR_5 = 5
Metrics = dict[str, float | None]


@dataclass(frozen=True)
class Group:
    """Some images.

    Attributes:
        images: how many.
        metrics: shares in [0, 1]; None: undefined.
        interval: of the first metric, Clopper-Pearson at 99.5%; None where it is no share of
            images.
    """

    images: int
    metrics: Metrics
    interval: tuple[float, float] | None


@dataclass(frozen=True, eq=False)
class Breakdown:
    """A task by groups.

    Attributes:
        metric: that is compared: "acc1", or "mean_average_precision" where an image has several
            classes.
        every: all images.
        groups: of each column, in the order of its values.
        disparities: of each column; None where fewer than two groups can be compared.
    """

    metric: str
    every: Group
    groups: dict[str, list[Group]]
    disparities: dict[str, Disparity | None]


def break_down(
    features: Tensor,
    classifier: Tensor,
    labels: np.ndarray,
    columns: Sequence[Column],
) -> Breakdown:
    """Judge a classifier on each group.

    Args:
        features: ``[N, D]``.
        classifier: ``[C, D]``.
        labels: ``[N]`` int64, or ``[N, C]`` bool.
        columns: whose groups are of these N images.

    Raises:
        ValueError: there is no image.
    """
    if not len(features):
        raise ValueError("there is no image to break down")
    truth = torch.from_numpy(labels)
    if truth.ndim == 2:
        scores = cosines(features, classifier)

        def judge(rows: Tensor) -> Group:
            return _several(scores[rows], truth[rows])
    else:
        said = answers(features, classifier, truth, scale=1.0)

        def judge(rows: Tensor) -> Group:
            return _single(said, rows, len(classifier))

    every = judge(torch.arange(len(features)))
    metric = next(iter(every.metrics))
    groups = {
        column.name: [
            judge(torch.from_numpy(np.flatnonzero(column.group_of == number)))
            for number in range(len(column.values))
        ]
        for column in columns
    }
    disparities = {
        name: disparity(
            metric, [one.metrics[metric] for one in found], [one.interval for one in found]
        )
        for name, found in groups.items()
    }
    return Breakdown(metric, every, groups, disparities)


def _single(said: Answers, rows: Tensor, classes: int) -> Group:
    rank, count = said.rank[rows], len(rows)
    right = int((rank == 0).sum())
    metrics: Metrics = {
        "acc1": right / count,
        "mean_per_class_recall": mean_per_class_recall(
            said.predicted[rows], said.labels[rows], classes
        ),
    }
    if classes >= _FEWEST_FOR_5:
        metrics["acc5"] = int((rank < _FEWEST_FOR_5).sum()) / count
    return Group(count, metrics, clopper_pearson(right, count))


def _several(scores: Tensor, truth: Tensor) -> Group:
    """Of images with several classes; classes without an image of the group have no precision."""
    metrics: Metrics = {}
    for name, measure in (
        ("mean_average_precision", average_precision),
        ("mean_average_precision_11_points", average_precision_11_points),
    ):
        values = [measure(s, t) for s, t in zip(scores.T, truth.T, strict=True)]
        known = [value for value in values if value is not None]
        metrics[name] = sum(known) / len(known) if known else None
    return Group(len(scores), metrics, None)
