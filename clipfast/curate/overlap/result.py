"""The overlap of one evaluation set with a training set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from clipfast.curate.overlap.evalset import EvalSet
from clipfast.curate.overlap.statistics import Effect, significant


@dataclass(frozen=True, eq=False)
class SetOverlap:
    """What a training set holds of an evaluation set.

    Attributes:
        images: the set.
        threshold: similarity from which an image overlaps.
        place: ``[N]`` int64, of the images that decode.
        similarity: ``[N]`` float32, of each one's nearest training picture.
        shard: ``[N]``, place of that one's shard.
        row: ``[N]``, its row there.
        effect: on a model; None without answers.
    """

    images: EvalSet
    threshold: float
    place: np.ndarray
    similarity: np.ndarray
    shard: np.ndarray
    row: np.ndarray
    effect: Effect | None = None

    @property
    def overlaps(self) -> np.ndarray:
        """``[N]`` bool: which images the training set holds."""
        return self.similarity >= np.float32(self.threshold)

    @property
    def contamination(self) -> float:
        """Share of the images that overlap."""
        return float(self.overlaps.mean()) if len(self.place) else 0.0

    def as_json(self) -> dict[str, Any]:
        """What stands in the result."""
        return {
            "dataset": self.images.name,
            "split": self.images.split,
            "threshold": self.threshold,
            "images": len(self.place),
            "unreadable": self.images.images - len(self.place),
            "overlap": int(self.overlaps.sum()),
            "contamination": self.contamination,
            "effect": None if self.effect is None else self.effect.as_json(),
        }


def tests_of(results: Sequence[SetOverlap]) -> int:
    """How many sets were tested: what Bonferroni divides by.

    Args:
        results: of all sets.
    """
    return sum(one.effect is not None and one.effect.p_value is not None for one in results)


def as_json(results: Sequence[SetOverlap], detector: str, train: int) -> dict[str, Any]:
    """All sets.

    Args:
        results: of the sets.
        detector: its name.
        train: training samples.
    """
    tests = tests_of(results)
    sets = []
    for one in results:
        entry = one.as_json()
        if one.effect is not None:
            entry["effect"]["significant"] = significant(one.effect.p_value, tests)
        sets.append(entry)
    return {"detector": detector, "train_samples": train, "tests": tests, "sets": sets}
