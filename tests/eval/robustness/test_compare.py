"""Effective and relative robustness, and the other models that they are of."""

import json
import re

import numpy as np
import pytest

from clipfast.eval.robustness import Baseline, Fit, Score, fit_logits, read_baselines, read_results
from clipfast.eval.robustness.compare import compare


def score(right, reference_right, dataset="v2", classifier="zeroshot"):
    return Score(
        dataset=dataset,
        classifier=classifier,
        right=right,
        images=100,
        reference_right=reference_right,
        reference_images=200,
    )


def some_baselines(count=9, noise=0.2):
    rng = np.random.default_rng(0)
    x = rng.uniform(0.3, 0.9, count)
    logits = 0.8 * np.log(x / (1 - x)) - 0.7 + noise * rng.standard_normal(count)
    return [
        Baseline(f"m{i}", "v2", float(a), float(1 / (1 + np.exp(-b))))
        for i, (a, b) in enumerate(zip(x, logits, strict=True))
    ]


def test_fit_is_that_of_scipy():
    from scipy.special import expit, logit
    from scipy.stats import linregress

    pairs = [(one.reference_acc1, one.acc1) for one in some_baselines()]
    found, expected = fit_logits(pairs), linregress(*logit(np.array(pairs).T))
    assert found.slope == pytest.approx(expected.slope)
    assert found.intercept == pytest.approx(expected.intercept)
    assert found.models == 9
    for share in (0.001, 0.4, 0.999):
        at = expected.slope * logit(share) + expected.intercept
        assert found.predict(share) == pytest.approx(expit(at))


def test_fit_has_limits_at_the_ends():
    assert (Fit(0.8, -0.7, 5).predict(0), Fit(0.8, -0.7, 5).predict(1)) == (0, 1)
    assert (Fit(-0.8, -0.7, 5).predict(0), Fit(-0.8, -0.7, 5).predict(1)) == (1, 0)
    assert Fit(0.0, 0.0, 5).predict(0) == Fit(0.0, 0.0, 5).predict(1) == 0.5


@pytest.mark.parametrize("pairs", [[], [(0.5, 0.4)], [(0.5, 0.4), (0.5, 0.3)]])
def test_fit_needs_two_different_models(pairs):
    assert fit_logits(pairs) is None


def test_compare_says_how_far_an_accuracy_is_above_the_line_and_the_baseline():
    baselines = some_baselines()
    (found, other), fits = compare([score(60, 140), score(10, 20, "a")], baselines, "m3")
    expected = fits["v2"].predict(0.7)
    assert found.effective_robustness == pytest.approx(0.6 - expected)
    assert found.relative_robustness == pytest.approx(0.6 - baselines[3].acc1)
    assert list(fits) == ["v2"]
    assert (other.effective_robustness, other.relative_robustness) == (None, None)


def test_compare_leaves_out_what_has_no_logit(caplog):
    ends = [Baseline("zero", "v2", 0.5, 0.0), Baseline("one", "v2", 1.0, 0.9)]
    _, fits = compare([score(60, 140)], [*some_baselines(), *ends], "one")
    assert fits == compare([score(60, 140)], some_baselines())[1]
    assert "2 baseline(s) with an accuracy of 0 or 1 are left out of the line, such as zero" in (
        caplog.text
    )
    caplog.clear()
    found, fits = compare([score(60, 140)], ends, "one")
    assert not fits
    assert found[0].relative_robustness == pytest.approx(-0.3)
    assert "are not two of different accuracy" in caplog.text


@pytest.mark.parametrize("baselines", [[], some_baselines(2)])
def test_compare_refuses_a_baseline_that_is_none(baselines):
    with pytest.raises(ValueError, match="--relative-to 'x': no baseline is called so"):
        compare([score(60, 140)], baselines, "x")


def write(path, *lines):
    path.write_text("\n".join(lines) + "\n")
    return path


def test_read_baselines_of_one_shift_needs_no_column_for_it(tmp_path):
    path = write(tmp_path / "b.csv", "Model,reference_acc1,shift_acc1", "a,0.5,0.25", "b,1,0")
    found = read_baselines(path, ["v2"])
    assert found == [Baseline("a", "v2", 0.5, 0.25), Baseline("b", "v2", 1.0, 0.0)]
    with pytest.raises(ValueError, match="no column for the shift"):
        read_baselines(path, ["v2", "a"])


def test_read_baselines_takes_the_names_of_clip_benchmark(tmp_path, caplog):
    head = "model,dataset,reference_acc1,acc1"
    path = write(tmp_path / "b.csv", head, "a,wds/imagenet-a,0.5,0.25", "a,imagenet-b,0.5,0.25")
    found = read_baselines(path, ["imagenet-a", "v2"])
    assert found[0].is_of("imagenet-a")
    assert not found[0].is_of("v2")
    assert "rows of imagenet-b are passed over" in caplog.text


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (["model,acc1", "a,0.5"], "no column for the accuracy on the reference"),
        (["name,reference,acc1", "a,51.2,0.5"], "line 2: reference is '51.2'; write accuracies as"),
        (["name,reference,acc1", "a,0.4,", "b,0.4,0.2"], "line 2: acc1 is ''"),
        (["name,reference,acc1", "a,0.4,nan"], "line 2: acc1 is 'nan'"),
        (["name,reference,acc1", ",0.4,0.2"], "line 2: a row needs the names of model and shift"),
    ],
)
def test_read_baselines_names_what_is_wrong(tmp_path, lines, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        read_baselines(write(tmp_path / "b.csv", *lines), ["v2"])


def result(path, dataset="imagenet1k", task="robustness", **more):
    entry = {"acc1": 0.4, "reference_acc1": 0.6, "classifier": "zeroshot", "dataset": "v2"}
    adapted = {**entry, "classifier": "adapted", "acc1": 0.45}
    other = {**entry, "dataset": "vid", "classifier": "superclass_max", "acc1": 0.7}
    own = {**other, "classifier": "own_names", "acc1": 0.8}
    content = {
        "dataset": dataset, "task": task, "model": "RN50", "pretrained": "w.pt",
        "shifts": [entry, adapted, other, own], **more,
    }  # fmt: skip
    path.write_text(json.dumps(content))
    return path


def test_read_results_takes_the_adapted_classifier_where_there_is_one(tmp_path):
    found = read_results([result(tmp_path / "r.json")], "imagenet1k")
    assert found == [
        Baseline("RN50 (w.pt)", "v2", 0.6, 0.45),
        Baseline("RN50 (w.pt)", "vid", 0.6, 0.7),
    ]


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"dataset": "cifar10"}, "is of the reference 'cifar10', and this is 'imagenet1k'"),
        ({"task": "zeroshot_classification"}, "is no result of the task 'robustness'"),
        ({"shifts": [{"dataset": "v2", "classifier": "zeroshot"}]}, "is no result of the task"),
        ({"shifts": [3]}, "is no result of the task"),
    ],
)
def test_read_results_names_what_is_none(tmp_path, more, words):
    path = tmp_path / "r.json"
    with pytest.raises(ValueError, match=words):
        read_results([result(path, **more)], "imagenet1k")
    path.write_text("{")
    with pytest.raises(ValueError, match="is no JSON"):
        read_results([path], "imagenet1k")
    with pytest.raises(ValueError, match="cannot read"):
        read_results([tmp_path / "none.json"], "imagenet1k")
