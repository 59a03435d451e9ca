"""The solver against scikit-learn, and on input that is odd."""

import warnings

import numpy as np
import pytest
import torch

from clipfast.eval.probe import Classifiers, Part, Rows, as_rows, fit
from tests.eval.probe.problems import problem

LAMBDAS = (0.1, 1.0, 1e2, 1e4)


def reference(features, labels, strength, **options):
    """scikit-learn's in float64, by Newton's method: its L-BFGS takes thousands of iterations."""
    from sklearn.linear_model import LogisticRegression

    options = {"solver": "newton-cholesky", "tol": 1e-9, **options}
    model = LogisticRegression(C=1 / strength, max_iter=1000, **options)
    return model.fit(features.astype(np.float64), labels)


@pytest.mark.needs("sklearn")
@pytest.mark.parametrize(
    ("rows", "dim", "classes"), [(507, 33, 7), (252, 123, 3), (300, 7, 2), (41, 1, 3), (60, 123, 5)]
)
def test_fit_is_scikit_learns(rows, dim, classes):
    features, labels = problem(rows, dim, classes)
    fits = fit(features, labels, LAMBDAS, tolerance=4e-7)
    assert fits.lambdas == LAMBDAS
    assert all(fits.converged)
    for number, strength in enumerate(LAMBDAS):
        expected = reference(features, labels, strength).predict_proba(features)
        found = fits.classifiers.probabilities(as_rows(features), number).numpy()
        np.testing.assert_allclose(found, expected, atol=1e-4)


@pytest.mark.needs("sklearn")
def test_fit_of_several_classes_per_row_is_a_binary_problem_per_class():
    features, _ = problem(300, 33, 3)
    labels = np.stack([problem(300, 33, 2, seed=seed)[1] for seed in range(3)], 1).astype(bool)
    fits = fit(features, labels, [1.0, 100.0], tolerance=1e-6)
    for number, strength in enumerate(fits.lambdas):
        found = fits.classifiers.probabilities(as_rows(features), number).numpy()
        for c in range(3):
            expected = reference(features, labels[:, c], strength).predict_proba(features)
            np.testing.assert_allclose(found[:, c], expected[:, 1], atol=1e-4)


@pytest.mark.needs("sklearn")
def test_fit_without_a_bias_is_scikit_learns():
    features, labels = problem(300, 33, 4)
    fits = fit(features, labels, [1.0], bias=False, tolerance=1e-6)
    expected = reference(features, labels, 1.0, fit_intercept=False).predict_proba(features)
    found = fits.classifiers.probabilities(as_rows(features)).numpy()
    np.testing.assert_allclose(found, expected, atol=1e-4)
    assert not fits.classifiers.bias.any()


def test_fit_of_lambdas_together_is_each_alone():
    features, labels = problem(252, 33, 5)
    together = fit(features, labels, LAMBDAS, tolerance=3e-7).classifiers
    for number, strength in enumerate(LAMBDAS):
        alone = fit(features, labels, [strength], tolerance=3e-7).classifiers
        torch.testing.assert_close(
            together.probabilities(as_rows(features), number),
            alone.probabilities(as_rows(features)),
            atol=1e-4,
            rtol=0,
        )


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dim", [7, 123])
def test_fit_towards_a_prior_is_a_minimum(dim, bias):
    """Of N > D and N < D rows: no small step from it is better."""
    features, labels = problem(60, dim, 3)
    prior = torch.randn(3, dim, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = fit(features, labels, [3.0], prior=prior, bias=bias, tolerance=1e-6).classifiers
    weight, offset = found.weight[0].requires_grad_(), found.bias[0].requires_grad_()
    logits = torch.from_numpy(features).double() @ weight.T + offset
    loss = torch.nn.functional.cross_entropy(logits, torch.from_numpy(labels), reduction="sum")
    (loss + 1.5 * (weight - prior).square().sum()).backward()
    assert weight.grad.abs().max() < 2e-4
    assert (offset.grad.abs().max() < 2e-4) == bias


def test_fit_of_two_classes_towards_a_prior_pulls_the_difference():
    features, labels = problem(60, 7, 2)
    prior = torch.randn(2, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = fit(features, labels, [1e9], prior=prior, bias=False).classifiers.weight[0]
    torch.testing.assert_close(found[1] - found[0], prior[1] - prior[0], atol=1e-5, rtol=0)


def test_fit_from_a_start_needs_fewer_iterations_for_the_same():
    features, labels = problem(507, 33, 5)
    first = fit(features, labels, [1.0], tolerance=1e-6)
    again = fit(features, labels, [1.0], start=first.classifiers, tolerance=1e-6)
    near = fit(features, labels, [1.5], start=first.classifiers, tolerance=1e-6)
    cold = fit(features, labels, [1.5], tolerance=1e-6)
    assert again.iterations[0] <= 1
    assert near.iterations[0] < cold.iterations[0]
    rows = as_rows(features)
    torch.testing.assert_close(
        near.classifiers.probabilities(rows),
        cold.classifiers.probabilities(rows),
        atol=1e-4,
        rtol=0,
    )


def test_fit_reads_a_mapped_float16_file_in_pieces(tmp_path):
    features, labels = problem(1501, 33, 3)
    np.save(tmp_path / "features.npy", features.astype(np.float16))
    mapped = np.load(tmp_path / "features.npy", mmap_mode="r")
    streamed = Rows((Part(mapped),), torch.device("cpu"), resident_bytes=0)
    kept = Rows((Part(mapped.astype(np.float32)),), torch.device("cpu"))
    piece_rows = [len(piece) for _, piece in streamed.pieces(columns=5000)]
    assert len(piece_rows) > 2
    assert sum(piece_rows) == 1501
    found = [fit(rows, labels, [0.5], tolerance=1e-6).classifiers for rows in (streamed, kept)]
    assert streamed._kept is None
    torch.testing.assert_close(found[0].weight, found[1].weight, atol=1e-4, rtol=1e-3)


def test_rows_of_several_arrays_and_of_picked_rows_are_end_to_end():
    features, _ = problem(20, 3, 2)
    picked = np.array([5, 3, 19])
    rows = Rows((Part(features[:7]), Part(torch.from_numpy(features), picked)), torch.device("cpu"))
    (first, piece), *rest = rows.pieces()
    assert first == len(rest) == 0
    np.testing.assert_array_equal(piece, np.concatenate([features[:7], features[picked]]))


@pytest.mark.needs("sklearn")
def test_fit_names_a_class_without_rows_and_never_predicts_it():
    features, labels = problem(252, 33, 4)
    features, labels = features[labels != 2], labels[labels != 2]
    with pytest.warns(UserWarning, match=r"1 of 4 classes .* never predicted: 2 \(cat\)"):
        fits = fit(
            features, labels, [1.0], classes=4, classnames=["a", "b", "cat", "d"], tolerance=1e-6
        )
    found = fits.classifiers.probabilities(as_rows(features)).numpy()
    assert not found[:, 2].any()
    expected = reference(features, labels, 1.0).predict_proba(features)
    np.testing.assert_allclose(found[:, [0, 1, 3]], expected, atol=1e-4)


def test_fit_of_constant_features_says_how_often_a_class_is_there():
    features = np.full((100, 7), 1000.0, dtype=np.float32)
    labels = np.arange(100) % 10 // 7 + np.arange(100) % 2  # 0, 1 and 2
    fits = fit(features, labels, [1e-6, 1.0], tolerance=1e-6)
    shares = torch.from_numpy(np.bincount(labels) / 100).float()
    for number in range(2):
        found = fits.classifiers.probabilities(as_rows(features), number)
        torch.testing.assert_close(found, shares.expand(100, 3), atol=1e-5, rtol=0)
    assert fits.classifiers.weight.abs().max() < 1e-6


def test_fit_of_separable_rows_converges_at_a_tiny_lambda():
    features, labels = problem(252, 123, 5, spread=4.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fits = fit(features, labels, [1e-6, 1e-4], tolerance=1e-5)
    assert max(fits.gradient_norm) <= 1e-5
    assert (fits.classifiers.predictions(as_rows(features)) == torch.from_numpy(labels)).all()


def test_fit_of_shifted_rows_loses_no_digits():
    """The common part is a thousand times what tells classes apart."""
    features, labels = problem(507, 33, 3, shift=0.0)
    features = np.round(features * 64) / 64  # so that the shift rounds nothing
    fits = [fit(features + shift, labels, [1.0], tolerance=1e-6) for shift in (0.0, 1024.0)]
    torch.testing.assert_close(
        fits[0].classifiers.weight, fits[1].classifiers.weight, atol=2e-5, rtol=0
    )


def test_fit_says_what_did_not_converge():
    features, labels = problem(252, 33, 3)
    with pytest.warns(UserWarning, match=r"1 of 1 lambdas \(lambda 0.01: .* after 2 iterations"):
        fits = fit(features, labels, [1e-2], max_iterations=2)
    assert fits.converged == (False,)
    assert fits.iterations == (2,)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"labels": np.zeros(11, int)}, "11 labels for 12 rows"),
        ({"labels": np.array([0, 1, 2, -1] * 3)}, "row 3 has label -1"),
        ({"labels": np.array([0, 1, 5] * 4), "classes": 3}, "row 2 has label 5, expected 0 to 2"),
        ({"labels": np.zeros(12, int)}, "two classes at least"),
        ({"labels": np.zeros(12)}, "expected .N. integers"),
        ({"labels": np.zeros((12, 2), bool)}, "two classes at least"),
        ({"labels": np.zeros((12, 2), bool), "classes": 3}, "2 columns for 3 classes"),
        ({"lambdas": [1.0, 0.0]}, "numbers above 0"),
        ({"lambdas": []}, "numbers above 0"),
        ({"prior": torch.zeros(2, 4)}, r"expected \[3, 4\], got \[2, 4\]"),
        ({"features": np.zeros(12, np.float32)}, r"arrays \[N, D\]"),
        ({"features": np.zeros((12, 0), np.float32)}, "no features"),
    ],
)
def test_fit_refuses_by_name(change, told):
    features, labels = problem(12, 4, 3)
    given = {"features": features, "labels": labels, "lambdas": [1.0]} | change
    with pytest.raises(ValueError, match=told):
        fit(**given)


@pytest.mark.parametrize("dim", [4, 40])
@pytest.mark.parametrize("value", [np.inf, np.nan])
def test_fit_names_a_row_that_is_not_finite(value, dim):
    features, labels = problem(12, dim, 3)
    features[5, 1] = value
    with pytest.raises(ValueError, match="features: row 5 holds a value that is not finite"):
        fit(features, labels, [1.0])


def test_predictions_of_all_classifiers_are_those_of_their_scores():
    features, labels = problem(60, 7, 3)
    found = fit(features, labels, [1.0, 100.0]).classifiers
    rows = as_rows(features)
    every = found.predictions(rows)
    assert isinstance(found.take(1), Classifiers)
    for number in range(2):
        assert torch.equal(every[number], found.scores(rows, number).argmax(1))
        assert torch.equal(every[number], found.take(number).predictions(rows)[0])
