"""The whole probe by clipfast and by scikit-learn: search, fit again, test."""

from __future__ import annotations

import importlib.metadata
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from benchmarks.parts.probe.problem import Problem
from clipfast.eval.probe import Labelled, as_rows, fit, linear_probe, search, strength

TOLERANCE = 1e-4  # scikit-learn's own
MAX_ITERATIONS = 1000


@dataclass(frozen=True)
class Outcome:
    """What a contender found.

    Attributes:
        accuracy: on the test rows.
        strength: lambda.
        scores: accuracy on the validation rows, by step of the search.
        late: fits that reached the limit of iterations, or whose gradient is not small enough.
    """

    accuracy: float
    strength: float
    scores: dict[int, float]
    late: int


def run_clipfast(problem: Problem, device: torch.device) -> Outcome:
    """``clipfast.eval.probe.linear_probe``.

    Args:
        problem: the splits.
        device: where its products run.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the outcome counts them
        found = linear_probe(
            *(
                Labelled(part.features, part.labels)
                for part in (problem.train, problem.test, problem.validation)
            ),
            classes=problem.classes,
            tolerance=TOLERANCE,
            max_iterations=MAX_ITERATIONS,
            device=device,
        )
    assert found.accuracy is not None
    return Outcome(found.accuracy, found.found.strength, found.found.scores, found.late)


def accuracy_at(problem: Problem, strength: float, device: torch.device) -> float:
    """Our accuracy on the test rows with a lambda that somebody else chose.

    Args:
        problem: the splits; train and validation rows are fitted.
        strength: lambda.
        device: where the products run.
    """
    parts = (problem.train, problem.validation)
    fits = fit(
        torch.cat([part.features for part in parts]),
        torch.cat([part.labels for part in parts]),
        [strength],
        classes=problem.classes,
        tolerance=TOLERANCE,
        device=device,
    )
    predicted = fits.classifiers.predictions(as_rows(problem.test.features, device))[0]
    return float((predicted == problem.test.labels).double().mean())


def sklearn_name() -> str:
    """As in the table."""
    return f"scikit-learn {importlib.metadata.version('scikit-learn')}"


def run_sklearn(problem: Problem) -> Outcome:
    """The same search with ``LogisticRegression`` in place of the solver, one fit after the other.

    Args:
        problem: the splits; float32, as scikit-learn takes them.
    """
    from sklearn.linear_model import LogisticRegression

    train, validation, test = (
        (part.features.numpy(), part.labels.numpy())
        for part in (problem.train, problem.validation, problem.test)
    )
    late = 0

    def fitted(step: int, features: np.ndarray, labels: np.ndarray) -> LogisticRegression:
        nonlocal late
        model = LogisticRegression(C=1 / strength(step), max_iter=MAX_ITERATIONS, tol=TOLERANCE)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model.fit(features, labels)
        late += int(model.n_iter_.max() >= MAX_ITERATIONS)
        return model

    def score(steps: Sequence[int]) -> list[float]:
        return [float(fitted(step, *train).score(*validation)) for step in steps]

    found = search(score)
    both = [np.concatenate(pair) for pair in zip(train, validation, strict=True)]
    accuracy = float(fitted(found.best, *both).score(*test))
    return Outcome(accuracy, found.strength, found.scores, late)
