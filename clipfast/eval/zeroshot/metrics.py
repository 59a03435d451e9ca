"""Measures of classification. Samples or classes of equal score are treated alike or in order.

Each agrees with scikit-learn's function of the same meaning.
"""

from __future__ import annotations

import numpy as np
from torch import Tensor

_POINTS = 11


def recall_per_class(predicted: Tensor, labels: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """How many samples of each class there are, and how many of them are found.

    Args:
        predicted: ``[N]`` int64.
        labels: ``[N]`` int64.
        classes: C.

    Returns:
        ``[C]`` int64 samples, and ``[C]`` int64 of them that are right.
    """
    right = labels[predicted == labels]
    return labels.bincount(minlength=classes), right.bincount(minlength=classes)


def mean_per_class_recall(predicted: Tensor, labels: Tensor, classes: int) -> float:
    """Mean over the classes that have samples: scikit-learn's ``balanced_accuracy_score``.

    Args:
        predicted: ``[N]`` int64.
        labels: ``[N]`` int64, N at least 1.
        classes: C.
    """
    samples, right = (counts.numpy() for counts in recall_per_class(predicted, labels, classes))
    there = samples > 0
    return float(np.mean(right[there] / samples[there]))


def confusion(predicted: Tensor, labels: Tensor, classes: int) -> Tensor:
    """How often each class (row) is taken for each class (column).

    Args:
        predicted: ``[N]`` int64.
        labels: ``[N]`` int64.
        classes: C.

    Returns:
        ``[C, C]`` int64.
    """
    return (labels * classes + predicted).bincount(minlength=classes**2).view(classes, classes)


def most_confused(
    predicted: Tensor, labels: Tensor, classes: int, most: int
) -> list[tuple[int, int, int]]:
    """The largest counts of ``confusion`` beside its diagonal, without that table.

    Args:
        predicted: ``[N]`` int64.
        labels: ``[N]`` int64.
        classes: C.
        most: pairs at most.

    Returns:
        Class, what it is taken for, and how often; the most frequent first, equal ones in order.
    """
    wrong = predicted != labels
    pairs, counts = (labels[wrong] * classes + predicted[wrong]).unique(return_counts=True)
    best = counts.argsort(descending=True, stable=True)[:most]
    return [
        (*divmod(pair, classes), count)
        for pair, count in zip(pairs[best].tolist(), counts[best].tolist(), strict=True)
    ]


def roc_auc(scores: Tensor, positive: Tensor) -> float | None:
    """Area under the curve of true against false positives.

        P(score of a positive > score of a negative) + 1/2 P(they are equal)

    Args:
        scores: ``[N]`` float64.
        positive: ``[N]`` bool.

    Returns:
        None where all samples are positive, or none is.
    """
    values, group = np.unique(scores.numpy(), return_inverse=True)
    truth = positive.numpy()
    ups = np.bincount(group[truth], minlength=len(values)).astype(np.float64)
    downs = np.bincount(group[~truth], minlength=len(values)).astype(np.float64)
    if not ups.sum() or not downs.sum():
        return None
    below = np.cumsum(downs) - downs
    return float((ups * (below + downs / 2)).sum() / (ups.sum() * downs.sum()))


def average_precision(scores: Tensor, positive: Tensor) -> float | None:
    """Precision at each positive, on average: scikit-learn's ``average_precision_score``.

        sum over thresholds of (recall - recall before) precision

    Samples of equal score come at one threshold.

    Args:
        scores: ``[N]`` float64.
        positive: ``[N]`` bool.

    Returns:
        None where no sample is positive.
    """
    found, taken = _at_thresholds(scores, positive)
    if not found[-1]:
        return None
    steps = np.diff(found, prepend=0)
    return float((steps * (found / taken)).sum() / found[-1])


def average_precision_11_points(scores: Tensor, positive: Tensor) -> float | None:
    """The average precision of VOC 2007.

        1/11 sum over r in {0, 0.1, ..., 1} of max precision where recall >= r

    Args:
        scores: ``[N]`` float64.
        positive: ``[N]`` bool.

    Returns:
        None where no sample is positive.

    Source: Everingham et al. 2010, section 4.2.
    """
    found, taken = _at_thresholds(scores, positive)
    if not found[-1]:
        return None
    precision = found / taken
    # In whole numbers: 3 / 10 is not below three times 0.1.
    best = [precision[found * (_POINTS - 1) >= point * found[-1]].max() for point in range(_POINTS)]
    return float(np.mean(best))


def _at_thresholds(scores: Tensor, positive: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """From the highest score down: positives so far, and samples so far, at each distinct one."""
    values, group = np.unique(-scores.numpy(), return_inverse=True)
    found = np.bincount(group, weights=positive.numpy(), minlength=len(values))
    taken = np.bincount(group, minlength=len(values))
    return np.cumsum(found).astype(np.int64), np.cumsum(taken)
