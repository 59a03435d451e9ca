"""What lambda is chosen by, and what a probe reports."""

from __future__ import annotations

import torch
from torch import Tensor

from clipfast.eval.probe.classifier import Classifiers
from clipfast.eval.probe.labels import Targets
from clipfast.eval.probe.rows import Rows
from clipfast.eval.zeroshot.metrics import average_precision_11_points, mean_per_class_recall

ACCURACY, MEAN_PER_CLASS, MAP11 = "accuracy", "mean_per_class", "map11"
METRICS = (ACCURACY, MEAN_PER_CLASS, MAP11)


def check_metric(metric: str | None, targets: Targets) -> str:
    """The metric, or the usual one of such labels.

    Args:
        metric: one of ``METRICS``; None: accuracy, and "map11" where a row has several classes.
        targets: what rows are.

    Raises:
        ValueError: there is none of that name, or it is not one of such labels.
    """
    if metric is None:
        return ACCURACY if targets.is_softmax else MAP11
    if metric not in METRICS:
        raise ValueError(f"metric {metric!r}: expected one of {', '.join(METRICS)}")
    if (metric == MAP11) == targets.is_softmax:
        kind = "one class" if targets.is_softmax else "several classes"
        fit = ", ".join(METRICS[:2] if targets.is_softmax else METRICS[2:])
        raise ValueError(f"metric {metric!r} is not one of rows with {kind}: take {fit}")
    return metric


def measure(metric: str, classifiers: Classifiers, rows: Rows, targets: Targets) -> list[float]:
    """The metric of each classifier.

    Args:
        metric: one of ``METRICS``.
        classifiers: L of them.
        rows: ``[N, D]``.
        targets: what they are.

    Returns:
        L values in [0, 1].
    """
    if metric == MAP11:
        return [_map11(classifiers.scores(rows, i), targets) for i in range(len(classifiers))]
    return [of_predictions(metric, found, targets) for found in classifiers.predictions(rows)]


def of_predictions(metric: str, predicted: Tensor, targets: Targets) -> float:
    """Accuracy, or mean recall of the classes that have rows.

    Args:
        metric: "accuracy" or "mean_per_class".
        predicted: ``[N]`` int64.
        targets: of one class per row.
    """
    if metric == MEAN_PER_CLASS:
        return mean_per_class_recall(predicted, targets.labels, targets.classes)
    return int((predicted == targets.labels).sum()) / len(targets)


def top_accuracy(scores: Tensor, targets: Targets, k: int) -> float | None:
    """Share of rows whose class is among the k of the highest scores.

    Args:
        scores: ``[N, C]``; of equals the first class counts as higher.
        targets: of one class per row.
        k: how many.

    Returns:
        None where there are fewer classes.
    """
    if targets.classes < k:
        return None
    labels = targets.labels[:, None]
    own = scores.gather(1, labels)
    before = torch.arange(targets.classes) < labels
    rank = ((scores > own) | ((scores == own) & before)).sum(1)
    return int((rank < k).sum()) / len(targets)


def _map11(scores: Tensor, targets: Targets) -> float:
    """Mean over the classes that have rows."""
    found = [
        value
        for c in range(targets.classes)
        if (value := average_precision_11_points(scores[:, c].double(), targets.labels[:, c]))
        is not None
    ]
    return float(torch.tensor(found, dtype=torch.float64).mean()) if found else 0.0
