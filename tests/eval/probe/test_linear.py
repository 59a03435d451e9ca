"""The whole probe: lambda against a full sweep and scikit-learn, splits, metrics, messages."""

import numpy as np
import pytest
import torch

from clipfast.eval.intervals import clopper_pearson
from clipfast.eval.probe import Labelled, as_rows, linear_probe, strength
from clipfast.eval.probe.labels import Targets
from clipfast.eval.probe.splits import cut
from clipfast.eval.sharing import Sharing
from tests.eval.probe.problems import problem
from tests.ranks import run_ranks


def split(rows, dim, classes, spread, seed=0):
    """Train, validation and test rows of one problem."""
    features, labels = problem(4 * rows, dim, classes, spread, seed)
    return [
        Labelled(features[a * rows : b * rows], labels[a * rows : b * rows])
        for a, b in ((0, 2), (2, 3), (3, 4))
    ]


@pytest.mark.parametrize(("classes", "spread", "seed"), [(3, 0.3, 0), (2, 0.2, 2)])
def test_probe_searches_to_the_lambda_of_a_full_sweep(classes, spread, seed):
    """Few rows to learn from, and so many to choose on that the best lambda is not chance."""
    features, labels = problem(3450, 60, classes, spread, seed)
    train, validation, test = (
        Labelled(features[a:b], labels[a:b]) for a, b in ((0, 150), (150, 3150), (3150, 3450))
    )
    searched, swept = (
        linear_probe(train, test, validation, how=how, tolerance=1e-5)
        for how in ("search", "sweep")
    )
    assert len(searched.found.scores) <= 15
    assert len(swept.found.scores) == 97
    assert searched.found.best == swept.found.best
    assert searched.score == pytest.approx(swept.score, abs=1.1 / 300)
    # Not where every lambda is as good.
    assert swept.found.scores[searched.found.best] > swept.found.scores[16] + 0.01


@pytest.mark.needs("sklearn")
def test_probe_scores_as_scikit_learn_on_train_and_validation():
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import balanced_accuracy_score

    train, validation, test = split(300, 33, 5, 0.5)
    probe = linear_probe(train, test, validation, tolerance=1e-5)
    model = LogisticRegression(C=1 / probe.found.strength, solver="newton-cholesky", tol=1e-9)
    model.fit(
        np.concatenate([train.features, validation.features]).astype(np.float64),
        np.concatenate([train.labels, validation.labels]),
    )
    predicted = model.predict(test.features.astype(np.float64))
    assert probe.accuracy == probe.score == (predicted == test.labels).mean()
    expected = balanced_accuracy_score(test.labels, predicted)
    assert probe.mean_per_class_recall == pytest.approx(expected)
    assert probe.interval == clopper_pearson(round(300 * probe.accuracy), 300)
    assert 0.3 < probe.accuracy < 1.0
    assert "on the 300 rows of the validation split" in probe.lines[0]
    assert f"accuracy {probe.accuracy:.4f} on 300 test rows, 99.5% interval" in probe.lines[-1]


def test_probe_chooses_on_the_validation_rows_alone():
    """Validation rows of noise: nothing but their own scores decides."""
    train, validation, test = split(100, 7, 3, 0.5)
    noise = Labelled(validation.features, np.random.default_rng(0).permutation(validation.labels))
    probe = linear_probe(train, test, noise)
    assert max(probe.found.scores.values()) < 0.6
    best = max(probe.found.scores.values())
    assert probe.found.best == max(s for s, v in probe.found.scores.items() if v == best)


def test_probe_cuts_a_validation_part_and_says_so():
    train, _, test = split(100, 7, 3, 0.5)
    probe = linear_probe(train, test, share=0.25, seed=4)
    assert (
        "50 of 200 train rows (no validation split: 25% were cut off, stratified, seed 4)"
        in (probe.lines[0])
    )
    learn, held = cut(Targets(torch.from_numpy(train.labels), 3), 0.25, 4)
    given = linear_probe(
        Labelled(train.features[learn], train.labels[learn]),
        test,
        Labelled(train.features[held], train.labels[held]),
    )
    assert given.found == probe.found
    # Fitted on all of train again.
    torch.testing.assert_close(
        given.classifier.probabilities(as_rows(test.features)),
        probe.classifier.probabilities(as_rows(test.features)),
        atol=1e-3,
        rtol=0,
    )


def test_probe_by_mean_per_class_weighs_classes_alike():
    train, validation, test = split(300, 7, 2, 0.4)
    rare = np.flatnonzero((validation.labels == 0) | (np.arange(300) % 10 == 0))
    few = Labelled(validation.features[rare], validation.labels[rare])
    probe = linear_probe(train, test, few, metric="mean_per_class")
    assert probe.metric == "mean_per_class"
    assert probe.score == probe.mean_per_class_recall
    assert f"mean_per_class {probe.score:.4f} on 300 test rows, accuracy" in probe.lines[-1]


def test_probe_of_several_classes_per_row_is_chosen_by_map11():
    features, _ = problem(400, 33, 3)
    labels = np.stack([problem(400, 33, 2, seed=seed)[1] for seed in range(3)], 1).astype(bool)
    hint = (features.mean(1) > np.median(features.mean(1)))[:, None] & (np.arange(3) == 1)
    labels |= hint
    train, test = (Labelled(features[s], labels[s]) for s in (slice(0, 300), slice(300, 400)))
    probe = linear_probe(train, test)
    assert probe.metric == "map11"
    assert probe.accuracy is probe.interval is None
    assert max(probe.found.scores.values()) > probe.found.scores[96]
    assert "accuracy" not in probe.lines[-1]


def test_probe_names_a_class_that_train_rows_lack_once():
    train, validation, test = split(100, 7, 3, 0.5)
    keep = train.labels != 1
    lacking = Labelled(train.features[keep], train.labels[keep])
    with pytest.warns(UserWarning, match=r"never predicted: 1 \(dog\)") as told:
        probe = linear_probe(lacking, test, validation, classnames=["cat", "dog", "owl"])
    assert len({str(one.message) for one in told}) == 1
    # The validation rows have it, so the last fit knows it.
    assert (probe.classifier.predictions(as_rows(test.features)) == 1).any()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"metric": "map11"}, "'map11' is not one of rows with one class: take accuracy"),
        ({"metric": "f1"}, "expected one of accuracy, mean_per_class, map11"),
        ({"how": "grid"}, "'grid': expected one of search, sweep"),
        ({"share": 1.5}, "expected a number in"),
        ({"classes": 2}, "train labels: row .* has label 2, expected 0 to 1"),
    ],
)
def test_probe_refuses_by_name(change, told):
    train, _, test = split(20, 4, 3, 0.5)
    with pytest.raises(ValueError, match=told):
        linear_probe(train, test, **change)


def test_probe_says_that_lambda_is_at_the_edge():
    train, validation, test = split(100, 7, 3, 0.5)
    constant = [Labelled(np.ones_like(s.features), s.labels) for s in (train, validation, test)]
    probe = linear_probe(constant[0], constant[2], constant[1])
    assert probe.found.strength == strength(96)
    assert "edge of the range" in probe.lines[1]


def _probed(how):
    rank, ranks = torch.distributed.get_rank(), torch.distributed.get_world_size()
    train, validation, test = split(80, 24, 3, 0.3)
    asked = []
    found = linear_probe(
        train,
        test,
        validation,
        how=how,
        sharing=Sharing(rank, ranks),
        between=lambda: asked.append(1),
    )
    told = [found.found.best, found.score, found.accuracy, found.mean_per_class_recall, found.late]
    return [told, dict(found.found.scores), len(asked)]


@pytest.mark.slow
def test_ranks_share_the_search_and_find_what_one_finds():
    (alone,) = run_ranks(1, _probed, "search")
    both = run_ranks(2, _probed, "search")
    for told, scores, rounds in both:
        assert told == pytest.approx(alone[0], abs=1e-6)
        assert scores == pytest.approx(alone[1], abs=0.02)
        assert rounds == alone[2]
    assert both[0][0] == both[1][0]
