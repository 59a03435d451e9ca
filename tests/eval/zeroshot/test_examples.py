"""Examples of zero-shot classification, and the classes that are confused."""

import io
import json

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from clipfast.eval.__main__ import main
from clipfast.eval.ranking import cosines
from clipfast.eval.zeroshot.examples import pick_examples, write_examples
from clipfast.eval.zeroshot.metrics import confusion, most_confused
from tests.eval.tiny import picture, tiny_weights, write_pictures

NAMES = ("cat", "dog", "hare", "crane", "owl", "fox", "bee")
SCALE = 14.3


def problem(rows: int = 61):
    """Random features, and labels of which about half are what the classifier says."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(rows, 12, generator=generator)
    classifier = F.normalize(torch.randn(len(NAMES), 12, generator=generator), dim=1)
    said = cosines(features, classifier).argmax(1)
    other = torch.randint(len(NAMES), (rows,), generator=generator)
    labels = torch.where(torch.rand(rows, generator=generator) < 0.5, said, other)
    return features, classifier, labels


def test_pick_examples_names_the_likeliest_classes_of_right_and_wrong_images():
    features, classifier, labels = problem()
    places = torch.arange(len(features)) + 5
    found = pick_examples(features, classifier, labels, NAMES, SCALE, places, 8)
    assert [example.right for example in found].count(True) == 4
    assert len({example.place for example in found}) == 8
    probabilities = (SCALE * cosines(features, classifier)).softmax(1)
    for example in found:
        row = example.place - 5
        expected = probabilities[row].sort(descending=True)
        assert [name for name, _ in example.top] == [NAMES[c] for c in expected.indices[:5]]
        assert [p for _, p in example.top] == pytest.approx(expected.values[:5].tolist())
        assert example.classes == (NAMES[labels[row]],)
        assert example.right == (example.top[0][0] == example.classes[0])


@pytest.mark.parametrize(("count", "right"), [(9, 6), (2, 1), (1, 1), (500, 6), (0, 0)])
def test_pick_examples_fills_the_places_of_a_rare_kind(count, right):
    features, classifier, _ = problem(9)
    labels = cosines(features, classifier).argmax(1)
    labels[[0, 4, 7]] = (labels[[0, 4, 7]] + 1) % len(NAMES)
    found = pick_examples(features, classifier, labels, NAMES, SCALE, torch.arange(9), count)
    assert len(found) == min(count, 9)
    assert [example.right for example in found].count(True) == right


def test_pick_examples_of_images_with_several_classes():
    features, classifier, labels = problem()
    several = torch.eye(len(NAMES), dtype=torch.bool)[labels]
    several[:, 2] = True
    places = torch.arange(len(features))
    for example in pick_examples(features, classifier, several, NAMES, SCALE, places, 10):
        assert example.classes == tuple(
            name for c, name in enumerate(NAMES) if c in (2, labels[example.place])
        )
        assert example.right == (example.top[0][0] in example.classes)


def test_write_examples_leaves_out_what_does_not_decode_and_removes_what_was_there(
    tmp_path, caplog
):
    features, classifier, labels = problem(9)
    found = pick_examples(features, classifier, labels, NAMES, SCALE, torch.arange(9), 4)
    broken = found[1].place
    stale = tmp_path / "examples" / "r" / "999.jpg"
    stale.parent.mkdir(parents=True)
    stale.write_bytes(b"old")
    written = write_examples(
        found, lambda i: b"no image" if i == broken else picture(i, 400, 90), tmp_path / "r.json"
    )
    assert [entry["image"] for entry in written] == [e.place for e in found if e.place != broken]
    assert f"image {broken} has no picture" in caplog.text
    assert not stale.exists()
    for entry in written:
        data = (tmp_path / entry["file"]).read_bytes()
        assert Image.open(io.BytesIO(data)).size == (96, 22)
        assert len(data) < 8000


@pytest.mark.parametrize("classes", [2, 7, 300])
def test_most_confused_are_the_largest_counts_of_the_confusion(classes):
    rng = np.random.default_rng(0)
    labels, predicted = torch.from_numpy(rng.integers(0, classes, (2, 500)))
    table = confusion(predicted, labels, classes).fill_diagonal_(0)
    found = most_confused(predicted, labels, classes, 20)
    assert all(table[row, column] == count for row, column, count in found)
    counts = [count for _, _, count in found]
    assert counts == table.flatten().sort(descending=True).values[: len(counts)].tolist()
    assert len(found) == min(20, int((table > 0).sum()))
    assert most_confused(labels, labels, classes, 20) == []


@pytest.mark.needs("nvidia.dali")
def test_zeroshot_writes_examples_beside_its_result(tmp_path, capsys):
    weights = tiny_weights(tmp_path)
    data = write_pictures(tmp_path / "animals", {"cat": 3, "dog": 2, "hare": 2})
    words = ["zeroshot", "--weights", str(weights), "--data", str(data), "--out", str(tmp_path)]
    assert main([*words, "--examples", "4"]) == 0
    (path,) = tmp_path.glob("*.json")
    found = json.loads(path.read_text())
    assert len(found["examples"]) == 4
    for example in found["examples"]:
        assert (tmp_path / example["file"]).is_file()
        assert sum(entry["probability"] for entry in example["top"]) == pytest.approx(1)
    wrong = sum(entry["images"] for entry in found["most_confused"])
    assert wrong == found["images"] - sum(entry["right"] for entry in found["per_class"])
    assert main([*words, "--examples", "-1"]) == 1
    assert "--examples is 0 to 1000; got -1" in capsys.readouterr().err
