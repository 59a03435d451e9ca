"""Measures of classification against scikit-learn's, on scores with ties."""

import numpy as np
import pytest
import torch

from clipfast.eval.ranking import cosines
from clipfast.eval.zeroshot.answers import answers
from clipfast.eval.zeroshot.metrics import (
    average_precision,
    average_precision_11_points,
    confusion,
    mean_per_class_recall,
    roc_auc,
)


def tied_scores(samples: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores of few values, and a truth that they hardly tell."""
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, 5, samples) / 7
    truth = rng.random(samples) < 0.3
    truth[:2] = True, False
    return torch.from_numpy(scores), torch.from_numpy(truth)


def collinear(samples: int, classes: int, seed: int) -> tuple[torch.Tensor, ...]:
    """Features and classifiers of few directions, so that many similarities are equal."""
    rng = torch.Generator().manual_seed(seed)
    rows = torch.randint(-1, 2, (samples, 3), generator=rng).float()
    weights = torch.randint(-1, 2, (classes, 3), generator=rng).float()
    labels = torch.randint(0, classes, (samples,), generator=rng)
    return rows, weights, labels


@pytest.mark.parametrize(("samples", "seed"), [(7, 0), (123, 1), (507, 2)])
def test_roc_auc_equals_scikit_learn_with_ties(samples, seed):
    from sklearn.metrics import roc_auc_score

    scores, truth = tied_scores(samples, seed)
    assert roc_auc(scores, truth) == pytest.approx(roc_auc_score(truth, scores), abs=1e-12)


@pytest.mark.parametrize(("samples", "seed"), [(7, 0), (123, 1), (507, 2)])
def test_average_precision_equals_scikit_learn_with_ties(samples, seed):
    from sklearn.metrics import average_precision_score

    scores, truth = tied_scores(samples, seed)
    expected = average_precision_score(truth, scores)
    assert average_precision(scores, truth) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(("samples", "seed"), [(7, 0), (123, 1), (507, 2)])
def test_11_points_equal_those_of_scikit_learns_curve(samples, seed):
    from sklearn.metrics import precision_recall_curve

    scores, truth = tied_scores(samples, seed)
    precision, recall, _ = precision_recall_curve(truth, scores)
    # The last point of that curve has no threshold.
    precision, recall = precision[:-1], recall[:-1]
    points = [precision[recall >= i / 10 - 1e-12].max() for i in range(11)]
    found = average_precision_11_points(scores, truth)
    assert found == pytest.approx(np.mean(points), abs=1e-12)


def test_11_points_of_a_ranking_by_hand():
    scores = torch.tensor([0.9, 0.8, 0.7, 0.6, 0.5], dtype=torch.float64)
    truth = torch.tensor([True, False, True, False, False])
    # Precision 1 up to recall 1/2, and 2/3 beyond.
    expected = (6 * 1.0 + 5 * 2 / 3) / 11
    assert average_precision_11_points(scores, truth) == pytest.approx(expected, abs=1e-15)


@pytest.mark.parametrize("truth", [[True, True], [False, False]])
def test_measures_of_one_kind_are_undefined(truth):
    scores = torch.tensor([0.1, 0.2], dtype=torch.float64)
    positive = torch.tensor(truth)
    assert roc_auc(scores, positive) is None
    if not any(truth):
        assert average_precision(scores, positive) is None
        assert average_precision_11_points(scores, positive) is None


@pytest.mark.parametrize(("samples", "classes", "seed"), [(1, 3, 0), (123, 7, 1), (507, 31, 2)])
def test_answers_equal_scikit_learn_with_ties(samples, classes, seed):
    from sklearn.metrics import log_loss, top_k_accuracy_score

    rows, weights, labels = collinear(samples, classes, seed)
    found = answers(rows, weights, labels, scale=3.0)
    scores = cosines(rows, weights)
    assert len(scores.unique()) < 30, "there must be ties"
    np.testing.assert_array_equal(found.predicted, scores.numpy().argmax(1))
    every = range(classes)
    for k in (k for k in (1, 5) if k < classes):
        # Of equal scores scikit-learn takes the last class; here it is the first.
        expected = top_k_accuracy_score(
            classes - 1 - labels.numpy(), scores.numpy()[:, ::-1], k=k, labels=list(every)
        )
        assert (found.rank < k).double().mean().item() == pytest.approx(expected, abs=1e-12)
    probabilities = (3.0 * scores).softmax(1).numpy()
    expected = log_loss(labels.numpy(), probabilities, labels=list(every))
    assert -found.log_probability.mean().item() == pytest.approx(expected, abs=1e-9)


def test_answers_in_parts_equal_those_at_once(monkeypatch):
    rows, weights, labels = collinear(123, 7, 3)
    whole = answers(rows, weights, labels, 3.0)
    monkeypatch.setattr("clipfast.eval.zeroshot.answers._AT_ONCE", 7 * 10)
    parts = answers(rows, weights, labels, 3.0)
    for name in ("predicted", "rank", "log_probability"):
        assert torch.equal(getattr(whole, name), getattr(parts, name))


def test_answers_of_a_collapsed_model_are_chance():
    labels = torch.arange(50) % 10
    found = answers(torch.ones(50, 8), torch.ones(10, 8), labels, 100.0)
    assert (found.rank < 1).double().mean().item() == pytest.approx(0.1)
    assert (found.rank < 5).double().mean().item() == pytest.approx(0.5)
    assert found.log_probability.exp().numpy() == pytest.approx(0.1)


def test_cosines_are_within_their_grid_and_equal_rows_tie():
    rows = torch.randn(252, 123, generator=torch.Generator().manual_seed(0))
    weights = torch.cat([rows[:7] * 3.7, rows[:7]])
    found = cosines(rows, weights)
    exact = torch.nn.functional.normalize(rows.double(), dim=1)
    exact = exact @ torch.nn.functional.normalize(weights.double(), dim=1).T
    assert (found - exact).abs().max() < 2**-23
    assert torch.equal(found[:, 7:], cosines(rows, rows[:7]))


@pytest.mark.parametrize(("samples", "classes"), [(7, 3), (123, 10), (507, 37)])
def test_recall_and_confusion_equal_scikit_learn(samples, classes):
    from sklearn.metrics import balanced_accuracy_score, confusion_matrix

    rng = torch.Generator().manual_seed(samples)
    labels = torch.randint(0, classes - 1, (samples,), generator=rng)
    predicted = torch.randint(0, classes - 1, (samples,), generator=rng)
    # The last class has no image: it is left out of the mean.
    expected = balanced_accuracy_score(labels, predicted)
    found = mean_per_class_recall(predicted, labels, classes)
    assert found == pytest.approx(expected, abs=1e-15)
    table = confusion(predicted, labels, classes)
    np.testing.assert_array_equal(
        table, confusion_matrix(labels, predicted, labels=list(range(classes)))
    )
