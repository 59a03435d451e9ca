"""Probes of few rows per class: figures 6 and 7 of Radford et al. 2021."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from clipfast.eval.probe.choose import WarmFits, choose
from clipfast.eval.probe.classifier import Classifiers
from clipfast.eval.probe.labels import Targets, as_targets
from clipfast.eval.probe.linear import Labelled
from clipfast.eval.probe.metrics import check_metric, measure, of_predictions
from clipfast.eval.probe.rows import Part, Rows
from clipfast.eval.probe.search import strength
from clipfast.eval.probe.splits import draw, folds

TASK = "few_shot"
SHOTS = (1, 2, 4, 8, 16)
ONE_SHOT_STEP = 52  # lambda 3.16, which is C 0.316: that of OpenAI's example


@dataclass(frozen=True)
class Curve:
    """Scores on the test rows by rows per class.

    Attributes:
        metric: what they are.
        shots: K numbers of rows per class, ascending.
        seeds: S draws.
        scores: ``[K][S]``.
        steps: of lambda, ``[K][S]``; see ``search.strength``.
        late: fits that did not converge.
    """

    metric: str
    shots: tuple[int, ...]
    seeds: tuple[int, ...]
    scores: tuple[tuple[float, ...], ...]
    steps: tuple[tuple[int, ...], ...]
    late: int

    @property
    def means(self) -> tuple[float, ...]:
        """Over the seeds, per number of shots."""
        return tuple(float(np.mean(row)) for row in self.scores)

    @property
    def deviations(self) -> tuple[float, ...]:
        """Standard deviations over the seeds; 0 of one seed."""
        return tuple(float(np.std(row, ddof=min(1, len(row) - 1))) for row in self.scores)

    def as_json(self, zero_shot: float) -> dict[str, Any]:
        """What stands in the results.

        Args:
            zero_shot: the same metric of the zero-shot classifier.
        """
        return {
            "shots": self.shots,
            "seeds": self.seeds,
            "scores": self.scores,
            "lambdas": [[strength(step) for step in row] for row in self.steps],
            "shots_to_match_zero_shot": shots_to_match(self, zero_shot),
            "fits_not_converged": self.late,
        }


def few_shot(
    train: Labelled,
    test: Labelled,
    *,
    shots: Sequence[int] = SHOTS,
    seeds: Sequence[int] = (0, 1, 2),
    classes: int | None = None,
    classnames: Sequence[str] | None = None,
    prior: Tensor | None = None,
    metric: str | None = None,
    number_of_folds: int = 4,
    how: str = "search",
    tolerance: float = 1e-4,
    max_iterations: int = 1000,
    device: torch.device | str = "cpu",
    on_pass: Callable[[], None] | None = None,
) -> Curve:
    """Fit a few rows per class and report on all test rows.

    The rows of fewer shots are part of those of more. Lambda is chosen by cross-validation within
    the drawn rows, so no other label is looked at: as many folds as shots, ``number_of_folds`` at
    most, the predictions of all folds counted together.

    One row per class leaves no class to hold out. A plain probe then takes lambda 3.16. With a
    prior a class that is held out is still known, so whole classes are held out in folds.

    With a prior the probe has no bias: it is ``min sum CE(W x) + lambda / 2 |W - W0|^2``, and a
    large lambda gives the zero-shot classifier back.

    Args:
        train: to draw from.
        test: to report on.
        shots: rows per class.
        seeds: of the draws.
        classes: C; None takes it from the labels of ``train``.
        classnames: C names, for messages.
        prior: W0 ``[C, D]``, a zero-shot classifier times its scale, for features that are
            projected and normalised; None is a plain probe.
        metric: "accuracy" or "mean_per_class"; None is accuracy.
        number_of_folds: at most.
        how: "search" or "sweep".
        tolerance: see ``fit``.
        max_iterations: see ``fit``.
        device: where the products run.
        on_pass: see ``fit``.

    Raises:
        ValueError: a class has too few rows, rows have several classes, or see ``fit``.
    """
    if classes is None and classnames is not None:
        classes = len(classnames)
    shots, seeds = tuple(sorted(set(shots))), tuple(seeds)
    if not shots or shots[0] < 1 or not seeds or number_of_folds < 2:
        raise ValueError(
            f"expected shots of 1 or more, a seed and 2 folds, got shots {list(shots)}, seeds "
            f"{list(seeds)}, {number_of_folds} folds"
        )
    device = torch.device(device)
    targets = as_targets(train.labels, classes, len(train.features), "train labels")
    test_rows = Rows((Part(test.features),), device, name="test features")
    test_targets = as_targets(test.labels, targets.classes, len(test_rows), "test labels")
    draw(targets, shots[-1], seeds[0], classnames)  # refuses before there is any work
    metric = check_metric(metric, targets)
    options: dict[str, Any] = {
        "prior": prior,
        "bias": prior is None,
        "tolerance": tolerance,
        "max_iterations": max_iterations,
        "on_pass": on_pass,
    }
    scores, steps, late = [], [], 0
    for count in shots:
        row_scores, row_steps = [], []
        for seed in seeds:
            drawn = draw(targets, count, seed)
            # A few rows: as a tensor, so that no fold goes back to the file.
            features = Part(train.features, drawn).read(0, len(drawn))
            few = targets.take(drawn)
            parts = _parts(count, targets.classes, number_of_folds, prior is not None)
            step = ONE_SHOT_STEP
            if parts:
                learners, step = _choose(features, few, parts, metric, how, device, options)
                late += sum(one.late for one in learners)
            last = WarmFits(Rows((Part(features),), device), few, options)
            (score,) = measure(metric, last.at([step]), test_rows, test_targets)
            late += last.late
            row_scores.append(score)
            row_steps.append(step)
        scores.append(tuple(row_scores))
        steps.append(tuple(row_steps))
    return Curve(metric, shots, seeds, tuple(scores), tuple(steps), late)


def shots_to_match(curve: Curve, zero_shot: float) -> float | None:
    """Rows per class with which a probe is as good as zero-shot: figure 7.

    Between two numbers of shots the score is taken as linear in their logarithm.

    Args:
        curve: of ``few_shot``.
        zero_shot: the same metric of the zero-shot classifier.

    Returns:
        Rows per class; the first of the curve where it is better from the start; None where it
        never is.
    """
    before: tuple[int, float] | None = None
    for count, mean in zip(curve.shots, curve.means, strict=True):
        if mean >= zero_shot:
            if before is None:
                return float(count)
            share = (zero_shot - before[1]) / (mean - before[1])
            return math.exp(math.log(before[0]) + share * (math.log(count) - math.log(before[0])))
        before = count, mean
    return None


_Fold = tuple[np.ndarray, np.ndarray]


def _parts(shots: int, classes: int, number: int, has_prior: bool) -> list[_Fold]:
    """Rows to learn from and rows held out, per fold; none where nothing can be held out."""
    if shots > 1:
        return folds(shots, classes, number)
    return folds(classes, 1, number) if has_prior else []


def _choose(
    features: Tensor,
    few: Targets,
    parts: list[_Fold],
    metric: str,
    how: str,
    device: torch.device,
    options: dict[str, Any],
) -> tuple[list[WarmFits], int]:
    learners = [
        WarmFits(Rows((Part(features, learn),), device), few.take(learn), options)
        for learn, _ in parts
    ]
    held = [Rows((Part(features, out),), device) for _, out in parts]
    places = torch.from_numpy(np.concatenate([out for _, out in parts]))
    pooled = Targets(few.labels[places], few.classes)

    def score(made: Sequence[Classifiers]) -> list[float]:
        predicted = [one.predictions(rows) for one, rows in zip(made, held, strict=True)]
        return [of_predictions(metric, found, pooled) for found in torch.cat(predicted, 1)]

    return learners, choose(learners, score, how).best
