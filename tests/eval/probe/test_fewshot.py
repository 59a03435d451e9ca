"""Few rows per class: plain, with a prior, and where zero-shot crosses."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from clipfast.eval.probe import Curve, Labelled, few_shot, shots_to_match, strength
from clipfast.eval.probe.fewshot import ONE_SHOT_STEP
from clipfast.eval.probe.labels import as_targets
from clipfast.eval.probe.splits import draw

CLASSES, DIM = 7, 33


def towers(noise, seed=0):
    """Features of length 1, and a zero-shot classifier that is near the classes' centres."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(CLASSES, DIM, generator=generator)
    labels = torch.arange(420) % CLASSES
    features = centres[labels] + 2.5 * torch.randn(420, DIM, generator=generator)
    features = F.normalize(features, dim=1)
    classifier = centres + noise * torch.randn(CLASSES, DIM, generator=generator)
    classifier = F.normalize(classifier, dim=1)
    train, test = (
        Labelled(features[s].numpy(), labels[s].numpy()) for s in (slice(210), slice(210, 420))
    )
    right = (features[210:] @ classifier.T).argmax(1) == labels[210:]
    return train, test, classifier, float(right.double().mean())


def test_few_shot_rises_with_the_shots_and_is_its_seeds():
    train, test, _, _ = towers(0.0)
    options = {"shots": (1, 4, 16), "seeds": (0, 1)}
    curve = few_shot(train, test, **options)
    assert curve == few_shot(train, test, **options)
    assert curve.means[0] < curve.means[1] < curve.means[2]
    assert curve.steps[0] == (ONE_SHOT_STEP, ONE_SHOT_STEP)
    assert strength(ONE_SHOT_STEP) == pytest.approx(1 / 0.316, rel=1e-3)
    assert curve.scores[2][0] != curve.scores[2][1]
    assert curve.deviations[2] == pytest.approx(np.std(curve.scores[2], ddof=1))


def test_few_shot_with_a_prior_starts_near_zero_shot_and_beats_plain():
    train, test, classifier, zero_shot = towers(1.0)
    options = {"shots": (1, 2, 16), "seeds": (0, 1, 2)}
    plain = few_shot(train, test, **options)
    with_prior = few_shot(train, test, prior=50.0 * classifier, **options)
    assert plain.means[0] < zero_shot - 0.1
    assert with_prior.means[0] > zero_shot - 0.03
    assert all(a > b for a, b in zip(with_prior.means[:2], plain.means[:2], strict=True))
    assert with_prior.means[2] > zero_shot
    assert 1.0 < shots_to_match(plain, zero_shot) <= 16.0


def test_few_shot_looks_at_no_label_that_is_not_drawn():
    """Rows that are not drawn may be anything."""
    train, test, classifier, _ = towers(1.0)
    drawn = draw(as_targets(train.labels, CLASSES, 210), 2, seed=0)
    others = np.setdiff1d(np.arange(210), drawn)
    features = train.features.copy()
    features[others] = np.nan
    options = {"shots": [2], "seeds": [0], "prior": classifier}
    clean = few_shot(train, test, **options)
    assert few_shot(Labelled(features, train.labels), test, **options) == clean


def test_few_shot_refuses_by_name():
    train, test, classifier, _ = towers(1.0)
    with pytest.raises(ValueError, match="31 rows per class: 7 of 7 classes have fewer"):
        few_shot(train, test, shots=[31])
    with pytest.raises(ValueError, match="shots of 1 or more"):
        few_shot(train, test, shots=[0])
    with pytest.raises(ValueError, match=r"prior: expected \[7, 33\], got \[7, 32\]"):
        few_shot(train, test, shots=[2], seeds=[0], prior=classifier[:, 1:])


@pytest.mark.parametrize(
    ("zero_shot", "expected"), [(0.5, 4.0), (0.35, 2**0.5), (0.2, 1.0), (0.9, None)]
)
def test_shots_to_match_is_linear_in_the_logarithm(zero_shot, expected):
    scores = ((0.3, 0.3), (0.3, 0.5), (0.4, 0.6), (0.7, 0.9))
    curve = Curve("accuracy", (1, 2, 4, 8), (0, 1), scores, ((0, 0),) * 4, 0)
    assert shots_to_match(curve, zero_shot) == (expected and pytest.approx(expected))
