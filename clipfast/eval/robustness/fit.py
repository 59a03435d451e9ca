"""What the accuracy on a shift would be of a model that is as good as others on the reference."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import exp, inf, log

import numpy as np


@dataclass(frozen=True)
class Fit:
    """A line through models, both accuracies on the scale of logits.

        logit(acc on the shift) = slope * logit(acc on the reference) + intercept

    Attributes:
        slope: of the line.
        intercept: at an accuracy of a half on the reference.
        models: that it was fitted to.
    """

    slope: float
    intercept: float
    models: int

    def predict(self, reference_acc1: float) -> float:
        """Accuracy that is expected on the shift; ends of the range give their limits.

        Args:
            reference_acc1: in [0, 1].
        """
        at = _logit(reference_acc1)
        return _expit(self.intercept + (self.slope * at if self.slope else 0.0))


def fit_logits(pairs: Sequence[tuple[float, float]]) -> Fit | None:
    """Least squares on the scale of logits.

    Args:
        pairs: accuracies on reference and shift, each in (0, 1).

    Returns:
        None where there are not two models of different accuracy on the reference.

    Taori et al. 2020, section 3.
    """
    x, y = (np.array([_logit(pair[i]) for pair in pairs]) for i in (0, 1))
    if len(set(x.tolist())) < 2:
        return None
    centred = x - x.mean()
    slope = float(centred @ y / (centred @ centred))
    return Fit(slope, float(y.mean() - slope * x.mean()), len(pairs))


def _logit(share: float) -> float:
    if share <= 0:
        return -inf
    return inf if share >= 1 else log(share / (1 - share))


def _expit(value: float) -> float:
    return 1 / (1 + exp(-value)) if value > 0 else exp(value) / (1 + exp(value))
