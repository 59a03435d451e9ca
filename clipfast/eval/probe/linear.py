"""The linear probe of Radford et al. 2021, appendix A.3."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from clipfast.eval.intervals import clopper_pearson
from clipfast.eval.probe.choose import WarmFits, choose
from clipfast.eval.probe.classifier import Classifiers
from clipfast.eval.probe.labels import Targets, as_targets
from clipfast.eval.probe.metrics import (
    ACCURACY,
    MEAN_PER_CLASS,
    check_metric,
    measure,
    top_accuracy,
)
from clipfast.eval.probe.rows import Features, Part, Rows
from clipfast.eval.probe.search import Found, strength
from clipfast.eval.probe.splits import cut
from clipfast.eval.sharing import Sharing

TASK = "linear_probe"


@dataclass(frozen=True, eq=False)
class Labelled:
    """Features and what they are.

    Attributes:
        features: ``[N, D]`` of any float type, also memory-mapped.
        labels: ``[N]`` integers; or ``[N, C]`` bool where a row may have several classes.
    """

    features: Features
    labels: Any


@dataclass(frozen=True, kw_only=True, eq=False)
class LinearProbe:
    """What a linear probe found.

    Attributes:
        metric: that lambda was chosen by.
        found: its value on the validation rows for each step that was tried.
        validation: where these rows came from.
        classifier: one, of train and validation rows together.
        score: the metric on the test rows.
        accuracy: there; None where a row may have several classes.
        accuracy_5: share of test rows whose class is among the five first; None of fewer classes.
        interval: of the accuracy, Clopper-Pearson at 99.5%.
        mean_per_class_recall: over the classes that have test rows.
        test_rows: how many.
        late: fits that did not converge, of those in the search and the last.
    """

    metric: str
    found: Found
    validation: str
    classifier: Classifiers
    score: float
    accuracy: float | None
    accuracy_5: float | None
    interval: tuple[float, float] | None
    mean_per_class_recall: float | None
    test_rows: int
    late: int

    @property
    def lines(self) -> list[str]:
        """For a person."""
        lines = [
            f"lambda {self.found.strength:.3g} (C {1 / self.found.strength:.3g}), chosen by "
            f"{self.metric} {max(self.found.scores.values()):.4f} on {self.validation}, among "
            f"{len(self.found.scores)} fits"
        ]
        if self.found.is_at_edge:
            lines.append("  the best lambda is at the edge of the range 1e-6 to 1e6")
        line = f"{self.metric} {self.score:.4f} on {self.test_rows} test rows"
        if self.metric != ACCURACY and self.accuracy is not None:
            line += f", accuracy {self.accuracy:.4f}"
        if self.interval is not None:
            line += f", 99.5% interval of the accuracy {self.interval[0]:.4f} to "
            line += f"{self.interval[1]:.4f}"
        return [*lines, line]

    def as_json(self) -> tuple[dict[str, float | None], dict[str, Any]]:
        """Metrics by CLIP_benchmark's names, and what stands in the results beside them."""
        metrics: dict[str, float | None] = {
            "lp_acc1": self.accuracy,
            "lp_acc5": self.accuracy_5,
            "lp_mean_per_class_recall": self.mean_per_class_recall,
        }
        if self.accuracy is None:
            metrics["lp_map_11_point"] = self.score
        return metrics, {
            "chosen_by": self.metric,
            "lambda": self.found.strength,
            "validation": self.validation,
            "validation_scores": [
                {"lambda": strength(step), self.metric: value}
                for step, value in self.found.scores.items()
            ],
            "test_images": self.test_rows,
            "intervals": {} if self.interval is None else {"lp_acc1": self.interval},
            "fits_not_converged": self.late,
        }


def linear_probe(
    train: Labelled,
    test: Labelled,
    validation: Labelled | None = None,
    *,
    classes: int | None = None,
    classnames: Sequence[str] | None = None,
    metric: str | None = None,
    share: float = 0.2,
    seed: int = 0,
    how: str = "search",
    tolerance: float = 1e-4,
    max_iterations: int = 1000,
    device: torch.device | str = "cpu",
    on_pass: Callable[[], None] | None = None,
    sharing: Sharing | None = None,
    between: Callable[[], None] | None = None,
) -> LinearProbe:
    """Choose lambda on validation rows, fit train and validation rows with it, report on test rows.

    Args:
        train: to learn from.
        test: to report on.
        validation: to choose lambda on; None cuts them from ``train``.
        classes: C; None takes it from the labels of ``train``.
        classnames: C names, for messages.
        metric: see ``check_metric``.
        share: of ``train`` that is cut off where there is no validation split.
        seed: of that cut.
        how: "search" is the paper's, "sweep" tries all 97 lambdas.
        tolerance: see ``fit``.
        max_iterations: see ``fit``.
        device: where the products run.
        on_pass: see ``fit``.
        sharing: this rank among others that call it together, with the same rows; they share the
            search. None: alone.
        between: see ``choose``.

    Raises:
        ValueError: see ``fit``, ``cut`` and ``check_metric``.

    Radford et al. 2021, appendix A.3.
    """
    if classes is None and classnames is not None:
        classes = len(classnames)
    device = torch.device(device)
    targets = as_targets(train.labels, classes, len(train.features), "train labels")
    classes = targets.classes
    test_rows = Rows((Part(test.features),), device, name="test features")
    test_targets = as_targets(test.labels, classes, len(test_rows), "test labels")
    metric = check_metric(metric, targets)
    learn, held, said = _validation(train, validation, targets, share, seed)
    options = {
        "classnames": classnames,
        "tolerance": tolerance,
        "max_iterations": max_iterations,
        "on_pass": on_pass,
    }
    learner = WarmFits(Rows((learn[0],), device, name="train features"), learn[1], options)
    held_rows = Rows((held[0],), device, name="validation features")
    found = choose(
        [learner],
        lambda made: measure(metric, made[0], held_rows, held[1]),
        how,
        sharing,
        between,
    )
    # Rows in memory twice would be one copy too many.
    learner.rows.drop()
    held_rows.drop()
    with warnings.catch_warnings():
        # Said of the train rows already.
        warnings.filterwarnings("ignore", message=".*are never predicted")
        last = WarmFits(
            Rows((learn[0], held[0]), device, name="train and validation features"),
            _joined(learn[1], held[1]),
            options,
            {found.best: learner.found[found.best]},
        )
        classifier = last.at([found.best])
    accuracy = accuracy_5 = interval = recall = None
    if targets.is_softmax:
        accuracy, recall = (
            measure(name, classifier, test_rows, test_targets)[0]
            for name in (ACCURACY, MEAN_PER_CLASS)
        )
        accuracy_5 = top_accuracy(classifier.scores(test_rows), test_targets, 5)
    measured = measure(metric, classifier, test_rows, test_targets)[0]
    # Processors differ in the last digit, and ranks go on by these numbers.
    measured, accuracy, accuracy_5, recall = (sharing or Sharing()).gather_objects(
        (measured, accuracy, accuracy_5, recall)
    )[0]
    if accuracy is not None:
        interval = clopper_pearson(round(accuracy * len(test_targets)), len(test_targets))
    return LinearProbe(
        metric=metric,
        found=found,
        validation=said,
        classifier=classifier,
        score=measured,
        accuracy=accuracy,
        accuracy_5=accuracy_5,
        interval=interval,
        mean_per_class_recall=recall,
        test_rows=len(test_targets),
        late=learner.late + last.late,
    )


_Side = tuple[Part, Targets]


def _validation(
    train: Labelled, validation: Labelled | None, targets: Targets, share: float, seed: int
) -> tuple[_Side, _Side, str]:
    """Rows to learn from, rows to choose on, and where these came from."""
    if validation is not None:
        held = as_targets(
            validation.labels, targets.classes, len(validation.features), "validation labels"
        )
        said = f"the {len(held)} rows of the validation split"
        return (Part(train.features), targets), (Part(validation.features), held), said
    learn, held_out = cut(targets, share, seed)
    said = f"{len(held_out)} of {len(targets)} train rows (no validation split: "
    said += f"{share:.0%} were cut off{', stratified' if targets.is_softmax else ''}, seed {seed})"
    return _picked(train, targets, learn), _picked(train, targets, held_out), said


def _picked(train: Labelled, targets: Targets, places: np.ndarray) -> _Side:
    return Part(train.features, places), targets.take(places)


def _joined(a: Targets, b: Targets) -> Targets:
    return Targets(torch.cat([a.labels, b.labels]), a.classes)
