"""What overlap is worth: accuracy on all images, on those that overlap, and on the others.

    contamination = |Overlap| / |All|
    p = P(X >= right of Overlap),  X ~ Binomial(|Overlap|, accuracy on Clean)

Radford et al. 2021, section 5: a one-tailed test whose null hypothesis is that a model is as good
on Overlap as on Clean, and the 99.5% Clopper-Pearson interval of its accuracy on Overlap.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from clipfast.eval.intervals import clopper_pearson

LEVEL = 0.995
# A result is called significant below it; Bonferroni divides it by the number of tests.
ALPHA = 0.05


@dataclass(frozen=True)
class Accuracy:
    """Right answers on some images.

    Attributes:
        images: that have an answer.
        right: of these.
    """

    images: int
    right: int

    @property
    def share(self) -> float | None:
        """In [0, 1]; None of no image."""
        return self.right / self.images if self.images else None


@dataclass(frozen=True)
class Effect:
    """What overlap does to one model on one set.

    Attributes:
        all: on all images that have an answer.
        overlap: on those that the training set holds.
        clean: on the others.
        p_value: see the head of this module; None where Overlap or Clean is empty.
        interval: of the accuracy on Overlap, 99.5%; None where Overlap is empty.
    """

    all: Accuracy
    overlap: Accuracy
    clean: Accuracy
    p_value: float | None
    interval: tuple[float, float] | None

    @property
    def gain(self) -> float | None:
        """Accuracy on All less that on Clean: what overlap adds to the result."""
        return _difference(self.all.share, self.clean.share)

    @property
    def difference(self) -> float | None:
        """Accuracy on Overlap less that on Clean."""
        return _difference(self.overlap.share, self.clean.share)

    @property
    def difference_interval(self) -> tuple[float, float] | None:
        """The interval of Overlap, less the accuracy on Clean."""
        if self.interval is None or self.clean.share is None:
            return None
        low, high = self.interval
        return low - self.clean.share, high - self.clean.share

    def as_json(self) -> dict[str, Any]:
        """What stands in a result."""
        return {
            **{
                name: {**asdict(part), "accuracy": part.share}
                for name, part in (
                    ("all", self.all),
                    ("overlap", self.overlap),
                    ("clean", self.clean),
                )
            },
            "all_less_clean": self.gain,
            "overlap_less_clean": self.difference,
            "overlap_less_clean_interval": self.difference_interval,
            "overlap_interval": self.interval,
            "p_value": self.p_value,
        }


def effect(correct: np.ndarray, overlaps: np.ndarray) -> Effect:
    """Measure it.

    Args:
        correct: ``[N]`` bool, whether the answer on an image is right.
        overlaps: ``[N]`` bool, whether the training set holds the image.

    Raises:
        ValueError: scipy is not installed.
    """
    every, overlap, clean = (
        Accuracy(int(part.size), int(part.sum()))
        for part in (correct, correct[overlaps], correct[~overlaps])
    )
    interval = None
    if overlap.images:
        interval = clopper_pearson(overlap.right, overlap.images, LEVEL)
    return Effect(every, overlap, clean, _p_value(overlap, clean), interval)


def _p_value(overlap: Accuracy, clean: Accuracy) -> float | None:
    if not overlap.images or clean.share is None:
        return None
    try:
        from scipy.stats import binomtest
    except ImportError:
        raise ValueError(
            "the test of overlap is scipy's, which is not installed: pip install 'clipfast[curate]'"
        ) from None
    test = binomtest(overlap.right, overlap.images, clean.share, alternative="greater")
    return float(test.pvalue)


def _difference(one: float | None, other: float | None) -> float | None:
    return None if one is None or other is None else one - other


def significant(p_value: float | None, tests: int) -> str:
    """In a word: "no", "yes", or "Bonferroni" where it is so among all tests together.

    Args:
        p_value: None: not tested.
        tests: that were made.
    """
    if p_value is None or p_value >= ALPHA:
        return "no"
    return "Bonferroni" if p_value < ALPHA / tests else "yes"
