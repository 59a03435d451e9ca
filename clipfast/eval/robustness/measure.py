"""Accuracies on a reference and on its shifts, each on the classes that both have."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from clipfast.eval.encoding import ImageEncoder
from clipfast.eval.intervals import clopper_pearson
from clipfast.eval.probe.classifier import Classifiers
from clipfast.eval.probe.features import FeatureCache
from clipfast.eval.probe.linear import Labelled, LinearProbe
from clipfast.eval.probe.rows import Part, Rows
from clipfast.eval.ranking import cosines
from clipfast.eval.readable import readable_features
from clipfast.eval.robustness.classmap import ClassMap
from clipfast.eval.robustness.shifts import Shift
from clipfast.eval.sets import LabelledSet
from clipfast.eval.zeroshot.cache import ClassifierCache

ZEROSHOT, SUPERCLASS_MAX, OWN_NAMES, ADAPTED = (
    "zeroshot",
    "superclass_max",
    "own_names",
    "adapted",
)
# Scores that are held at a time, in doubles: 64 MB.
_AT_ONCE = 1 << 23

_Scores = Callable[[slice], Tensor]  # from some rows to [n, K]


@dataclass(frozen=True, kw_only=True)
class Score:
    """One classifier on one shift.

    Attributes:
        dataset: name of the shift.
        classifier: "zeroshot": the names of the reference's classes. "superclass_max": the same,
            the best of the members of each class of the shift. "own_names": the names that the
            shift gives its classes. "adapted": a linear probe on features of the reference.
        right: images of the shift that are right.
        images: of the shift, whose class the reference has.
        reference_right: the same of the reference, on these classes.
        reference_images: of these classes.
        corruption: name and severity, where it is one.
        effective_robustness: accuracy beyond the expected one; None where that is not known.
        relative_robustness: accuracy beyond that of the baseline; None where there is none.
    """

    dataset: str
    classifier: str
    right: int
    images: int
    reference_right: int
    reference_images: int
    corruption: tuple[str, int] | None = None
    effective_robustness: float | None = None
    relative_robustness: float | None = None

    @property
    def acc1(self) -> float:
        """Top-1 on the shift."""
        return self.right / self.images

    @property
    def reference_acc1(self) -> float:
        """Top-1 on the reference."""
        return self.reference_right / self.reference_images

    @property
    def interval(self) -> tuple[float, float]:
        """Of ``acc1``, Clopper-Pearson at 99.5%."""
        return clopper_pearson(self.right, self.images)


@dataclass(frozen=True, kw_only=True, eq=False)
class Robustness:
    """What is left of an accuracy.

    Attributes:
        reference: name of the set.
        split: of it.
        right: images of it that zero-shot classifies right, among all of its classes.
        images: of it.
        scores: shifts in their order, of each its classifiers.
        unreadable: images that do not decode and are left out, by name of their set.
        left_out: classes of shifts that the reference has not, and their images, by name.
        seconds: that texts and images took.
    """

    reference: str
    split: str
    right: int
    images: int
    scores: tuple[Score, ...]
    unreadable: dict[str, int] = field(default_factory=dict)
    left_out: dict[str, tuple[int, int]] = field(default_factory=dict)
    seconds: float = 0.0


@dataclass(frozen=True, eq=False)
class Adapted:
    """A linear probe on features of the reference, and the features of all that it is asked.

    Attributes:
        probe: of the reference.
        reference: features of its test split, with their labels.
        shifts: of each shift, in their order.
    """

    probe: LinearProbe
    reference: Labelled
    shifts: Sequence[Labelled]


def measure(
    encoder: ImageEncoder,
    reference: LabelledSet,
    shifts: Sequence[Shift],
    cache: ClassifierCache | None = None,
) -> Robustness:
    """Classify the images of a set and of its shifts by the names of classes. A collective.

    A shift of some of the classes, or of coarser ones, is compared with the images of the reference
    that are of these classes, told apart in the same way.

    Args:
        encoder: of the model.
        reference: the set.
        shifts: of it.
        cache: of classifiers; None: each is built.

    Returns:
        The same on every rank.

    Raises:
        ValueError: no image of a set decodes, a feature is not finite, or reference or shift have
            no image of the classes of both.

    Radford et al. 2021, section 3.3 and figure 14.
    """
    cache = cache or ClassifierCache(None)
    begin = time.perf_counter()
    unreadable: dict[str, int] = {}
    left_out: dict[str, tuple[int, int]] = {}
    classifier = cache.classifier(
        encoder, reference.name, reference.classnames, reference.templates
    )
    ours = _features(encoder, reference, unreadable)
    # What is asked of the reference, once for all shifts that ask the same.
    known: dict[tuple[Any, ...], tuple[int, int]] = {}
    scores = []
    for shift in shifts:
        images, classes = shift.images, shift.classes
        theirs = _features(encoder, images, unreadable)
        wanted = [(SUPERCLASS_MAX if classes.is_coarse else ZEROSHOT, classifier)]
        if classes.is_coarse:
            names = [images.classnames[label] for label in classes.kept]
            own = cache.classifier(encoder, f"{images.name}-own", names, images.templates)
            wanted.append((OWN_NAMES, own))
        outside = classes.of_shift[theirs.labels] < 0
        if classes.shift_classes > len(classes):
            left_out[images.name] = (classes.shift_classes - len(classes), int(outside.sum()))
        for name, weights in wanted:
            pool = None if name == OWN_NAMES else classes
            own_words = (images.classnames, images.templates) if name == OWN_NAMES else ()
            key = (name, classes, own_words)
            if key not in known:
                place = classes.of_reference[ours.labels]
                what = f"{reference.name}, classes of {images.name}"
                known[key] = _count(ours.features, weights, pool, place, what)
            place = classes.of_shift[theirs.labels]
            right, count = _count(theirs.features, weights, pool, place, images.name)
            scores.append(
                Score(
                    dataset=images.name,
                    classifier=name,
                    right=right,
                    images=count,
                    reference_right=known[key][0],
                    reference_images=known[key][1],
                    corruption=shift.corruption,
                )
            )
    right, count = _count(ours.features, classifier, None, ours.labels, reference.name)
    return Robustness(
        reference=reference.name,
        split=reference.split,
        right=right,
        images=count,
        scores=tuple(scores),
        unreadable=unreadable,
        left_out=left_out,
        seconds=time.perf_counter() - begin,
    )


def features_to_adapt(
    encoder: ImageEncoder,
    cache: FeatureCache,
    sets: Sequence[LabelledSet],
) -> list[Labelled]:
    """Features before the projection, with their labels. A collective.

    Args:
        encoder: of the model.
        cache: of features.
        sets: all that a probe is fitted to or tested on.

    Raises:
        ValueError: see ``FeatureCache``.
        OSError: a file cannot be written.
    """
    return [cache.features(encoder, one, "penultimate").labelled(one.labels) for one in sets]


def adapted_scores(
    adapted: Adapted, reference: LabelledSet, shifts: Sequence[Shift]
) -> tuple[Score, ...]:
    """The probe on all shifts, on the classes of each.

    Args:
        adapted: see there.
        reference: the set.
        shifts: of it.

    Returns:
        One score per shift.

    Raises:
        ValueError: reference or shift have no image of the classes of both.
    """
    ours = adapted.reference
    known: dict[ClassMap, tuple[int, int]] = {}
    found = []
    for shift, theirs in zip(shifts, adapted.shifts, strict=True):
        images, classes = shift.images, shift.classes
        if classes not in known:
            what = f"{reference.name}, classes of {images.name}"
            known[classes] = _count_probe(
                adapted.probe.classifier, ours, classes, classes.of_reference, what
            )
        right, count = _count_probe(
            adapted.probe.classifier, theirs, classes, classes.of_shift, images.name
        )
        found.append(
            Score(
                dataset=images.name,
                classifier=ADAPTED,
                right=right,
                images=count,
                reference_right=known[classes][0],
                reference_images=known[classes][1],
                corruption=shift.corruption,
            )
        )
    return tuple(found)


@dataclass(frozen=True, eq=False)
class _Encoded:
    """Features of the images that decode, and their labels."""

    features: Tensor
    labels: Tensor


def _features(encoder: ImageEncoder, images: LabelledSet, unreadable: dict[str, int]) -> _Encoded:
    found = readable_features(encoder, images)
    if found.unreadable:
        unreadable[images.name] = len(found.unreadable)
    return _Encoded(found.features, torch.from_numpy(images.labels)[found.kept])


def _count(
    features: Tensor, weights: Tensor, pool: ClassMap | None, place: Tensor, what: str
) -> tuple[int, int]:
    """Right answers and questions of a zero-shot classifier; rows whose place is -1 are none."""

    def scores(rows: slice) -> Tensor:
        found = cosines(kept[rows], weights)
        return found if pool is None else pool.pool(found)

    kept = features[place >= 0]
    return _right(scores, place[place >= 0], len(weights), what)


def _count_probe(
    classifier: Classifiers, given: Labelled, classes: ClassMap, places: Tensor, what: str
) -> tuple[int, int]:
    place = places[torch.as_tensor(given.labels)]
    rows = Rows((Part(given.features),), torch.device("cpu"), name=what)
    pooled = classes.pool(classifier.scores(rows))[place >= 0]
    return _right(lambda part: pooled[part], place[place >= 0], pooled.shape[1], what)


def _right(scores: _Scores, place: Tensor, columns: int, what: str) -> tuple[int, int]:
    """Questions whose own score is the largest, the first among equals."""
    if not len(place):
        raise ValueError(f"{what}: there is no image of the classes that reference and shift have")
    right, chunk = 0, max(1, _AT_ONCE // columns)
    for start in range(0, len(place), chunk):
        rows = slice(start, start + chunk)
        found, label = scores(rows), place[rows, None]
        own, earlier = found.gather(1, label), torch.arange(found.shape[1]) < label
        right += int((~((found > own) | ((found == own) & earlier)).any(1)).sum())
    return right, len(place)
