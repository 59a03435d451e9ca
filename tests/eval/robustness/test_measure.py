"""Accuracies on a reference and its shifts, of a small model on small sets."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from clipfast.eval.encoding import ImageEncoder
from clipfast.eval.robustness import Shift, align, measure, open_shifts
from clipfast.eval.robustness.result import as_json, metrics_of, table
from clipfast.eval.robustness.shifts import evenly
from clipfast.eval.sets import LabelledSet
from clipfast.eval.zeroshot import build_classifier
from clipfast.preprocessing import Preprocessing
from tests.eval.tiny import SIZE, picture, tiny_model

NAMES = ("cat", "dog", "fire truck", "hare", "crane", "crane (bird)")
pytestmark = pytest.mark.needs("nvidia.dali")


def encoder(model=None, **options):
    return ImageEncoder(model or tiny_model(), Preprocessing(SIZE), 4, **options)


def some_set(name, names, count=17, first=0):
    labels = (np.arange(count) * 5 + first) % len(names)
    return LabelledSet(
        name, "test", tuple(names), ("a {c}", "{c}"), labels, lambda i: picture(first + i, 40 + i)
    )


def features(model, images):
    return F.normalize(encoder(model).images(images), dim=1).double()


def test_measure_compares_on_the_classes_of_the_shift():
    model, reference = tiny_model(), some_set("animals", NAMES)
    shift = some_set("few", ("hare", "dog", "fire_truck"), 13, first=50)
    found = measure(encoder(model), reference, [Shift(shift, align(reference, shift))])
    (score,) = found.scores
    weights = build_classifier(encoder(model), NAMES, reference.templates).double()
    scores = features(model, reference) @ weights.T
    assert found.images == 17
    assert found.right == int((scores.argmax(1).numpy() == reference.labels).sum())
    places = [3, 1, 2]
    rows = np.flatnonzero(np.isin(reference.labels, places))
    said = np.array(places)[scores[rows][:, places].argmax(1).numpy()]
    assert score.reference_images == len(rows)
    assert score.reference_right == int((said == reference.labels[rows]).sum())
    said = (features(model, shift) @ weights[places].T).argmax(1).numpy()
    assert (score.right, score.images) == (int((said == shift.labels).sum()), 13)
    assert score.interval[0] <= score.acc1 <= score.interval[1]


def test_measure_pools_probabilities_and_asks_by_own_names():
    model, reference = tiny_model(), some_set("animals", NAMES)
    mapping = {"bird": ["crane", "crane (bird)"], "mammal": ["cat", 1, "hare"], "car": []}
    shift = some_set("coarse", ("car", "bird", "mammal"), 14, first=90)
    classes = align(reference, shift, mapping)
    found = measure(encoder(model), reference, [Shift(shift, classes)])
    pooled, own = found.scores
    assert (pooled.classifier, own.classifier) == ("superclass_max", "own_names")
    weights = build_classifier(encoder(model), NAMES, reference.templates).double()
    owns = build_classifier(encoder(model), ("bird", "mammal"), shift.templates).double()
    for images, labels, counts in (
        (shift, shift.labels - 1, ("right", "images")),
        (
            reference,
            np.array([1, 1, -1, 1, 0, 0])[reference.labels],
            ("reference_right", "reference_images"),
        ),
    ):
        there = labels >= 0
        rows = features(model, images)[there]
        chances = (100 * rows @ weights.T).softmax(1)
        of_groups = torch.stack([chances[:, 4:].amax(1), chances[:, [0, 1, 3]].amax(1)], 1)
        for score, said in ((pooled, of_groups.argmax(1)), (own, (rows @ owns.T).argmax(1))):
            right = int((said.numpy() == labels[there]).sum())
            assert (getattr(score, counts[0]), getattr(score, counts[1])) == (right, there.sum())
    assert found.left_out == {"coarse": (1, int((shift.labels == 0).sum()))}
    assert set(metrics_of(found)) == {
        "reference_acc1",
        "coarse_acc1",
        "coarse_own_names_acc1",
        "mean_shift_acc1",
    }
    lines = "\n".join(table(found, {}))
    assert "coarse: 1 class(es) with" in lines
    assert "best of members" in lines
    assert "own names" in lines


def test_measure_asks_the_reference_by_the_names_of_each_shift():
    model, reference = tiny_model(), some_set("animals", NAMES, 40)
    shifts = []
    for names in (("bird", "mammal"), ("zzz", "a photo of a photo")):
        mapping = dict(zip(names, (["crane", "crane (bird)"], ["cat", "dog", "hare"]), strict=True))
        images = some_set(names[0], names, 6, first=90)
        shifts.append(Shift(images, align(reference, images, mapping)))
    together = measure(encoder(model), reference, shifts).scores
    alone = [score for one in shifts for score in measure(encoder(model), reference, [one]).scores]
    assert list(together) == alone
    assert alone[1].reference_right != alone[3].reference_right


def test_measure_of_a_collapsed_model_is_chance():
    model = tiny_model()
    with torch.no_grad():
        for weight in model.visual.parameters():
            weight.zero_()
        model.visual.proj.fill_(0)
    reference = some_set("animals", NAMES, 30)
    shift = some_set("few", ("dog", "cat"), 10)
    found = measure(encoder(model), reference, [Shift(shift, align(reference, shift))])
    assert found.right == 5
    assert (found.scores[0].right, found.scores[0].reference_right) == (5, 5)


def test_measure_of_corruptions_and_their_means():
    reference = some_set("animals", NAMES, 9)
    shifts = open_shifts(["corrupted:noise", "corrupted:fog:2"], reference, seed=3, at_most=SIZE)
    assert [one.images.name for one in shifts[:2]] == [
        "animals-c/gaussian_noise-1",
        "animals-c/gaussian_noise-2",
    ]
    assert len(shifts) == 16
    found = measure(encoder(), reference, shifts)
    assert all(score.reference_right == found.right for score in found.scores)
    content = as_json(found, {}, [])
    entry = content["corruptions"]["zeroshot"]
    assert entry["mean_effective_robustness"] is None
    gains = [replace(score, relative_robustness=0.01 * i) for i, score in enumerate(found.scores)]
    gained = replace(found, scores=tuple(gains))
    means = as_json(gained, {}, [])["corruptions"]["zeroshot"]
    assert means["mean_relative_robustness"] == pytest.approx(0.075)
    assert "mean relative robustness: +7.50 points" in table(gained, {})
    assert set(entry["by_corruption"]) == {"gaussian_noise", "shot_noise", "impulse_noise", "fog"}
    accuracies = [score.acc1 for score in found.scores]
    assert entry["mean_acc1"] == pytest.approx(np.mean(accuracies))
    assert metrics_of(found)["mean_corruption_acc1"] == pytest.approx(np.mean(accuracies))
    assert entry["by_group"]["noise"] == pytest.approx(np.mean(accuracies[:15]))
    of_two = [accuracies[i] for i in (1, 6, 11, 15)]
    assert entry["by_severity"]["2"] == pytest.approx(np.mean(of_two))
    assert content["shifts"][15]["corruption"] == "fog"
    assert any("severity 5" in line for line in table(found, {}))


def test_measure_leaves_out_what_does_not_decode():
    reference = some_set("animals", NAMES, 9)
    broken = replace(
        reference, encoded=lambda i: b"nothing" if i in (2, 5) else reference.encoded(i)
    )
    shifts = [
        Shift(replace(broken, name="broken"), align(reference, broken)),
        *open_shifts(["corrupted:fog:1"], broken),
    ]
    found = measure(encoder(), reference, shifts)
    assert found.unreadable == {"broken": 2, "animals-c/fog-1": 2}
    assert [score.images for score in found.scores] == [7, 7]
    nothing = replace(reference, name="nothing", encoded=lambda i: b"nothing")
    with pytest.raises(ValueError, match="nothing: none of 9 images decodes; the first"):
        measure(encoder(), reference, [Shift(nothing, align(reference, nothing))])


def test_measure_refuses_sets_without_common_images():
    reference = some_set("animals", NAMES, 9)
    shift = replace(reference, name="s", labels=np.zeros(9, np.int64))
    mapping = {"cat": [], "dog": ["dog"]}
    with pytest.raises(ValueError, match="s: there is no image of the classes that reference"):
        measure(encoder(), reference, [Shift(shift, align(reference, shift, mapping))])
    cats = replace(reference, labels=np.zeros(9, np.int64))
    dogs = replace(shift, labels=np.ones(9, np.int64))
    with pytest.raises(ValueError, match="animals, classes of s: there is no image"):
        measure(encoder(), cats, [Shift(dogs, align(cats, dogs, mapping))])


@pytest.mark.parametrize(
    ("sources", "words"),
    [
        (["corrupted:fogg"], "no corruption 'fogg'. Did you mean 'fog'"),
        (["corrupted:"], "no corruption ''"),
        (["corrupted:fog:6"], "a severity is 1 to 5, not '6'"),
        (["corrupted:fog:3:x"], "is no shift: write corrupted"),
        (["corrupted:fog:3", "corrupted:weather:3"], "two shifts are called 'animals-c/fog-3'"),
        (["nowhere"], "'nowhere' does not exist"),
    ],
)
def test_open_shifts_names_what_is_wrong(sources, words):
    with pytest.raises(ValueError, match=words):
        open_shifts(sources, some_set("animals", NAMES))


def test_open_shifts_counts_all_corruptions():
    assert len(open_shifts(["corrupted"], some_set("animals", NAMES))) == 75
    assert len(open_shifts(["corrupted:all:4"], some_set("animals", NAMES))) == 15


@pytest.mark.parametrize(("limit", "expected"), [(None, 17), (30, 17), (17, 17), (5, 5), (1, 1)])
def test_evenly_takes_images_with_their_labels(limit, expected):
    images = some_set("animals", NAMES)
    images = replace(images, attributes={"number": np.arange(17)})
    found = evenly(images, limit)
    assert len(found) == expected
    places = found.attributes["number"]
    assert len(set(places.tolist())) == expected
    for i, place in enumerate(places):
        assert found.labels[i] == images.labels[place]
        assert found.encoded(i) == images.encoded(int(place))


def test_evenly_refuses_nothing():
    with pytest.raises(ValueError, match="--limit must be at least 1; got 0"):
        evenly(some_set("animals", NAMES), 0)
