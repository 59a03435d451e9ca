"""What a classifier says of images, compared with what they are."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from clipfast.eval.ranking import cosines

# Scores that are held at a time, in doubles: 64 MB.
_AT_ONCE = 1 << 23


@dataclass(frozen=True, eq=False)
class Answers:
    """Answers on images with one class each.

    Classes of equal similarity keep their order, so that a collapsed model scores chance.

    Attributes:
        labels: ``[N]`` int64.
        predicted: ``[N]`` int64, the class of the largest similarity.
        rank: ``[N]`` int64, classes before the right one.
        log_probability: ``[N]`` float64, of the right class.
        margin: ``[N]`` float64, similarity of class 1 less that of class 0; empty beyond two
            classes.
    """

    labels: Tensor
    predicted: Tensor
    rank: Tensor
    log_probability: Tensor
    margin: Tensor


@torch.no_grad()
def answers(features: Tensor, classifier: Tensor, labels: Tensor, scale: float) -> Answers:
    """Ask a classifier.

    Args:
        features: ``[N, D]``.
        classifier: ``[C, D]``.
        labels: ``[N]`` int64.
        scale: exp(logit_scale), the learned one.

    Returns:
        Where ``predicted`` and ``rank`` depend on no temperature.
    """
    predicted, ranks, log_probability, margin = [], [], [], []
    chunk = max(1, _AT_ONCE // len(classifier))
    for start in range(0, len(features), chunk):
        rows = slice(start, start + chunk)
        scores = cosines(features[rows], classifier)
        right = labels[rows, None]
        found = scores.gather(1, right)
        earlier = torch.arange(len(classifier)) < right
        ahead = (scores > found) | ((scores == found) & earlier)
        predicted.append(_first_best(scores))
        ranks.append(ahead.sum(1))
        log_probability.append((scale * scores).log_softmax(1).gather(1, right)[:, 0])
        if len(classifier) == 2:
            margin.append(scores[:, 1] - scores[:, 0])
    # A rank may have no image.
    nothing, none = torch.empty(0, dtype=torch.float64), labels[:0]
    return Answers(
        labels,
        torch.cat([none, *predicted]),
        torch.cat([none, *ranks]),
        torch.cat([nothing, *log_probability]),
        torch.cat([nothing, *margin]),
    )


def _first_best(scores: Tensor) -> Tensor:
    """The first of the largest; torch's argmax may name any of them."""
    is_best = scores == scores.max(1, keepdim=True).values
    return is_best.to(torch.uint8).cumsum(1).eq(0).sum(1)
