"""A zero-shot task by groups, against scikit-learn and scipy on random scores with ties."""

import re
import warnings

import numpy as np
import pytest
import torch

from clipfast.eval.groups import break_down, columns_of, disparity, read_added, shares
from clipfast.eval.groups.labelsets import check_added
from clipfast.eval.groups.result import as_json, metrics_of, table

ROWS = 151


def problem(classes=6, seed=0):
    """Features on a coarse grid, so that classes tie; labels, and two columns."""
    rng = np.random.default_rng(seed)
    features = torch.from_numpy(rng.integers(-1, 2, (ROWS, 4))).float()
    classifier = torch.from_numpy(rng.integers(-1, 2, (classes, 4))).float()
    classifier[2] = classifier[0]
    attributes = {
        "gender": rng.choice(["f", "m", ""], ROWS, p=[0.6, 0.35, 0.05]),
        "age": rng.choice([3.0, 20.0, np.nan], ROWS),
    }
    return features, classifier, rng.integers(0, classes, ROWS), attributes


def exact_scores(features, classifier):
    """Cosines that are equal where they should be: rows are small integers."""
    a, b = features.double(), classifier.double()
    dots = a @ b.T
    lengths = ((a**2).sum(1)[:, None] * (b**2).sum(1)[None]).clamp(min=1)
    return (torch.sign(dots) * (dots**2 / lengths)).numpy()


def test_break_down_equals_scikit_learn_on_each_group():
    from scipy.stats import binomtest
    from sklearn.metrics import balanced_accuracy_score

    features, classifier, labels, attributes = problem()
    columns = columns_of(attributes, ["gender", "age", "gender,age"], "faces")
    found = break_down(features, classifier, labels, columns)
    scores = exact_scores(features, classifier)
    predicted = scores.argmax(1)  # NumPy's is the first of equals
    age = np.nan_to_num(attributes["age"], nan=-1)
    checked = 0
    for column in columns:
        assert sum(group.images for group in found.groups[column.name]) == ROWS
        for values, group in zip(column.values, found.groups[column.name], strict=True):
            rows = np.ones(ROWS, bool)
            for name, value in zip(column.name.split(","), values, strict=True):
                cells = attributes["gender"] if name == "gender" else age
                rows &= cells == ({"gender": "", "age": -1}[name] if value is None else value)
            right = int((predicted == labels)[rows].sum())
            assert group.images == rows.sum()
            assert group.metrics["acc1"] == pytest.approx(right / rows.sum())
            expected = binomtest(right, int(rows.sum())).proportion_ci(0.995)
            assert group.interval == pytest.approx((expected.low, expected.high), abs=1e-9)
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "y_pred contains classes")
                expected = balanced_accuracy_score(labels[rows], predicted[rows])
            assert group.metrics["mean_per_class_recall"] == pytest.approx(expected)
            below = (scores > scores[np.arange(ROWS), labels][:, None]).sum(1)
            ties = (scores == scores[np.arange(ROWS), labels][:, None]) & (
                np.arange(6) < labels[:, None]
            )
            rank = below + ties.sum(1)
            assert group.metrics["acc5"] == pytest.approx((rank[rows] < 5).mean())
            checked += 1
    pairs = set(zip(attributes["gender"].tolist(), age.tolist(), strict=True))
    assert checked == 3 + 3 + len(pairs)


def test_break_down_of_several_classes_per_image():
    from sklearn.metrics import average_precision_score

    features, classifier, labels, attributes = problem()
    truth = np.eye(6, dtype=bool)[labels] | (np.random.default_rng(1).random((ROWS, 6)) < 0.2)
    columns = columns_of(attributes, ["gender"], "faces")
    found = break_down(features, classifier, truth, columns)
    assert found.metric == "mean_average_precision"
    scores = exact_scores(features, classifier)
    for number, group in enumerate(found.groups["gender"]):
        rows = columns[0].group_of == number
        expected = [
            average_precision_score(truth[rows, c], scores[rows, c])
            for c in range(6)
            if truth[rows, c].any()
        ]
        assert group.metrics["mean_average_precision"] == pytest.approx(np.mean(expected))
        assert group.interval is None
    assert found.disparities["gender"].apart is None
    assert "intervals" not in " ".join(table(found, columns, [])[2:])


def test_break_down_refuses_nothing():
    with pytest.raises(ValueError, match="no image to break down"):
        break_down(torch.zeros(0, 4), torch.zeros(2, 4), np.zeros(0, np.int64), [])


def test_columns_order_numbers_then_texts_then_nothing():
    cells = {"a": np.array([10.0, np.nan, 9.0, 10.0]), "b": np.array(["y", "", "x", "x"])}
    a, b, both = columns_of(cells, ["a", "b", "B,a"], "set")
    assert a.values == ((9.0,), (10.0,), (None,))
    assert a.group_of.tolist() == [1, 2, 0, 1]
    assert b.values == (("x",), ("y",), (None,))
    assert both.name == "b,a"
    assert [both.label(i) for i in range(4)] == ["x, 9.0", "x, 10.0", "y, 10.0", "(empty), (empty)"]


def test_columns_by_default_are_those_of_few_values(caplog):
    cells = {"id": np.arange(500), "gender": np.arange(500) % 2}
    (found,) = columns_of(cells, None, "faces")
    assert found.name == "gender"
    assert "faces: columns with many values are passed over: id" in caplog.text


@pytest.mark.parametrize(
    ("attributes", "by", "words"),
    [
        ({}, None, "set has no columns that divide its images: give a table"),
        ({"age": np.arange(4)}, ["agee"], "no column 'agee'. Did you mean 'age'? Its columns are"),
        ({"age": np.arange(4)}, ["age", "age"], "--by names 'age' twice"),
        ({"age": np.arange(4)}, ["age,b"], "no column 'b'"),
        ({"age": np.arange(4)}, ["age,age,age"], "crosses 3 columns"),
        ({"age": np.arange(999)}, ["age"], "'age' has 999 values, and 200 at most"),
        ({"age": np.arange(999)}, None, "each column has more than 200 values (age)"),
    ],
)
def test_columns_name_what_does_not_fit(attributes, by, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        columns_of(attributes, by, "set")


def test_disparity_says_the_largest_gap_and_which_intervals_are_apart():
    found = disparity(
        "acc1", [0.5, 0.9, None, 0.5, 0.8], [(0.4, 0.6), (0.85, 0.95), None, (0.1, 0.9), (0.61, 1)]
    )
    assert (found.highest, found.lowest) == (1, 0)
    assert found.gap == pytest.approx(0.4)
    assert found.ratio == pytest.approx(0.5 / 0.9)
    assert found.apart == ((0, 1), (0, 4))
    assert disparity("acc1", [0.5, None], [(0.4, 0.6), None]) is None
    assert disparity("acc1", [0.0, 0.0], [(0, 0.5), (0, 0.6)]).ratio is None


def test_result_has_the_groups_and_says_whether_intervals_overlap():
    features, classifier, labels, attributes = problem()
    attributes["half"] = np.where(np.arange(ROWS) < 75, "a", "b")
    predicted = exact_scores(features, classifier).argmax(1)
    labels = np.where(np.arange(ROWS) < 75, predicted, (predicted + 1) % 6)
    attributes["one"] = np.full(ROWS, 7)
    columns = columns_of(attributes, ["half", "gender", "one"], "faces")
    found = break_down(features, classifier, labels, columns)
    content = as_json(found, columns, [])
    assert [entry["value"] for entry in content["groups"]["gender"]] == ["f", "m", "(empty)"]
    half = content["disparities"]["half"]
    assert half["intervals_overlap"] is False
    assert (half["lowest"], half["highest"], half["apart"]) == ("b", "a", [["b", "a"]])
    assert content["disparities"]["one"] is None
    metrics = metrics_of(found)
    assert metrics["half_gap"] == pytest.approx(1)
    assert metrics["one_gap"] is None
    lines = "\n".join(table(found, columns, []))
    assert "half: largest gap 100.00 points, b to a, ratio 0.000; their intervals do not" in lines
    assert "one: fewer than two groups" in lines
    assert "(empty)" in lines


def test_shares_count_what_is_put_into_added_classes():
    features, classifier, _, attributes = problem(classes=9)
    columns = columns_of(attributes, ["gender"], "faces")
    added = {"crime": ("thief", "criminal"), "animal": ("hen",)}
    found = shares(features, classifier, 6, added, columns)
    predicted = exact_scores(features, classifier).argmax(1)
    of_class = {"crime": (6, 7), "animal": (8,)}
    for number, group in enumerate(found.groups["gender"]):
        rows = columns[0].group_of == number
        for name, classes in of_class.items():
            share = np.isin(predicted[rows], classes).mean()
            assert group.shares[name] == pytest.approx(share)
            low, high = group.intervals[name]
            assert low <= share <= high
    total = sum(one.images * one.shares["crime"] for one in found.groups["gender"])
    assert found.every.shares["crime"] == pytest.approx(total / ROWS)


def test_read_added_reads_words_and_files(tmp_path):
    path = tmp_path / "a.json"
    path.write_text('{"animal": ["hen", "ox "]}')
    found = read_added(["crime = thief, criminal", str(path)], "--add-classes")
    assert found == {"crime": ("thief", "criminal"), "animal": ("hen", "ox")}


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["thief"], "write CATEGORY=name,name,..."),
        (["crime="], "a category needs a name and classes"),
        (["=thief"], "a category needs a name and classes"),
        (["crime=a,,b"], "a category needs a name and classes"),
        (["crime=a", "crime=b"], "category 'crime' is given twice"),
        (["none.json"], "cannot read 'none.json'"),
        (["list.json"], "must hold an object"),
        (["broken.json"], "is no JSON"),
    ],
)
def test_read_added_names_what_is_wrong(tmp_path, monkeypatch, given, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "list.json").write_text('["thief"]')
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(ValueError, match=re.escape(words)):
        read_added(given, "--add-classes")


@pytest.mark.parametrize("added", [{"a": ["Fire-Truck"]}, {"a": ["b"], "c": ["B"]}])
def test_check_added_refuses_a_class_that_is_there(added):
    with pytest.raises(ValueError, match="is there already"):
        check_added(["fire truck"], added)
