"""Zero-shot classification of small sets by small models."""

import dataclasses
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import clipfast
from clipfast.eval.encoding import ImageEncoder
from clipfast.eval.sets import LabelledSet, open_set
from clipfast.eval.zeroshot import ClassifierCache, ZeroShot, build_classifier, classify
from clipfast.eval.zeroshot.table import table
from clipfast.preprocessing import Preprocessing
from clipfast.tokenizer import tokenize
from tests.eval.tiny import SIZE, picture, tiny_model, write_pictures
from tests.ranks import run_ranks

NAMES = ("cat", "dog", "fire truck", "hare", "crane", "crane (bird)")
TEMPLATES = ("a photo of a {c}.", "art of the {c}", "{c}")


def encoder(model=None, **options) -> ImageEncoder:
    return ImageEncoder(model or tiny_model(), Preprocessing(SIZE), 4, **options)


def some_set(count: int = 11, several: bool = False) -> LabelledSet:
    labels = np.arange(count) % 5
    if several:
        labels = np.eye(len(NAMES), dtype=bool)[labels]
        labels[:, 1] |= np.arange(count) % 3 == 0
    return LabelledSet("birds", "test", NAMES, TEMPLATES, labels, lambda i: picture(i, 40 + i, 50))


def test_classifier_is_the_normalised_mean_of_normalised_texts():
    model = tiny_model()
    found = build_classifier(encoder(model), NAMES, TEMPLATES)
    for row, name in zip(found, NAMES, strict=True):
        with torch.no_grad():
            texts = model.encode_text(tokenize([t.format(c=name) for t in TEMPLATES]))
        expected = F.normalize(F.normalize(texts, dim=1).mean(0), dim=0)
        torch.testing.assert_close(row, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("names", "templates", "words"),
    [
        ((), TEMPLATES, "no class names"),
        (("cat", " "), TEMPLATES, "class name 2 is empty"),
        (NAMES, (), "no templates"),
        (NAMES, ("{c}", "a photo"), "template 2: 'a photo' has no slot {c}"),
    ],
)
def test_classifier_of_unfit_words_is_refused(names, templates, words):
    with pytest.raises(ValueError, match=words):
        build_classifier(encoder(), names, templates)


@pytest.mark.needs("nvidia.dali")
def test_classify_equals_the_metrics_of_scikit_learn():
    from sklearn.metrics import balanced_accuracy_score, confusion_matrix, top_k_accuracy_score

    model, images = tiny_model(), some_set()
    found = classify(encoder(model), images)
    features = F.normalize(encoder(model).images(images), dim=1)
    for key, templates in (("names", ("{c}",)), ("ensemble", TEMPLATES)):
        scores = (features @ build_classifier(encoder(model), NAMES, templates).T).numpy()
        metrics = found.prompts[key].metrics
        for k in (1, 5):
            expected = top_k_accuracy_score(images.labels, scores, k=k, labels=range(len(NAMES)))
            assert metrics[f"acc{k}"] == pytest.approx(expected)
        expected = balanced_accuracy_score(images.labels, scores.argmax(1))
        assert metrics["mean_per_class_recall"] == pytest.approx(expected)
    assert found.main.metrics["mean_acc1_acc5"] == pytest.approx(
        (found.main.metrics["acc1"] + found.main.metrics["acc5"]) / 2
    )
    expected = confusion_matrix(images.labels, scores.argmax(1), labels=range(len(NAMES)))
    assert found.main.confusion == expected.tolist()
    assert [entry["images"] for entry in found.main.per_class] == [3, 2, 2, 2, 2, 0]
    low, high = found.main.intervals["acc1"]
    assert low <= found.main.metrics["acc1"] <= high


@pytest.mark.needs("nvidia.dali")
def test_classify_several_classes_per_image():
    from sklearn.metrics import average_precision_score

    model, images = tiny_model(), some_set(several=True)
    found = classify(encoder(model), images).main
    features = F.normalize(encoder(model).images(images), dim=1)
    scores = (features @ build_classifier(encoder(model), NAMES, TEMPLATES).T).numpy()
    expected = [average_precision_score(images.labels[:, i], scores[:, i]) for i in range(5)]
    # The last class has no image.
    assert found.metrics["mean_average_precision"] == pytest.approx(np.mean(expected))
    assert found.per_class[5]["average_precision"] is None
    assert 0 < found.metrics["mean_average_precision_11_points"] <= 1
    assert "acc1" not in found.metrics
    named = classify(encoder(model), dataclasses.replace(images, name="voc2007"))
    assert named.metric == "mean_average_precision_11_points"
    assert any("mAP, 11 points is the metric" in line for line in table(named))


@pytest.mark.needs("nvidia.dali")
def test_classify_two_classes_has_an_area_and_no_top_5():
    from sklearn.metrics import roc_auc_score

    images = some_set(13)
    images = dataclasses.replace(images, classnames=("meme", "hate"), labels=images.labels % 2)
    model = tiny_model()
    metrics = classify(encoder(model), images).main.metrics
    features = F.normalize(encoder(model).images(images), dim=1)
    weights = build_classifier(encoder(model), images.classnames, TEMPLATES)
    scores = (features @ (weights[1] - weights[0])).numpy()
    assert metrics["roc_auc"] == pytest.approx(roc_auc_score(images.labels, scores))
    assert metrics["acc5"] is None
    assert metrics["mean_acc1_acc5"] is None


@pytest.mark.needs("nvidia.dali")
def test_classify_leaves_out_what_does_not_decode():
    whole, images = some_set(10), some_set(11)
    broken = dataclasses.replace(
        images, encoded=lambda i: b"no image" if i == 10 else images.encoded(i)
    )
    found = classify(encoder(), broken)
    assert found.images == 10
    assert list(found.unreadable) == [10]
    assert found.main.metrics == pytest.approx(classify(encoder(), whole).main.metrics)


@pytest.mark.needs("nvidia.dali")
def test_classify_nothing_readable_is_an_error():
    images = dataclasses.replace(some_set(3), encoded=lambda i: b"no image")
    with pytest.raises(ValueError, match="none of 3 images decodes"):
        classify(encoder(), images)


@pytest.mark.needs("nvidia.dali")
def test_classify_a_diverged_model_is_an_error():
    model = tiny_model()
    with torch.no_grad():
        model.visual.proj[0, 0] = torch.nan
    with pytest.raises(ValueError, match="11 image features of 11 are not finite"):
        classify(encoder(model), some_set())


def found_by_a_rank(rank: int = 0, world_size: int = 1, cache: str | None = None) -> dict:
    images = some_set()
    broken = dataclasses.replace(
        images, encoded=lambda i: b"no image" if i == 10 else images.encoded(i)
    )
    one = encoder(rank=rank, world_size=world_size, threads=1)
    found = classify(one, broken, ClassifierCache(Path(cache)) if cache else None)
    return {
        "metrics": dict(found.main.metrics),
        "unreadable": list(found.unreadable),
        "features": one.images(broken),
        # A rank has nothing to encode.
        "lone": one.images(some_set(1), "penultimate"),
        "texts": one.texts(["a", "b", "a", "c", "d e"]),
    }


def found_by_this_rank(cache: str) -> dict:
    import torch.distributed as dist

    return found_by_a_rank(dist.get_rank(), dist.get_world_size(), cache)


@pytest.mark.needs("nvidia.dali")
def test_two_ranks_equal_one(tmp_path):
    expected = found_by_a_rank()
    for found in run_ranks(2, found_by_this_rank, str(tmp_path)):
        assert found["metrics"] == pytest.approx(expected["metrics"], abs=1e-5)
        assert found["metrics"]["acc1"] == expected["metrics"]["acc1"]
        assert found["unreadable"] == [10]
        for name in ("features", "lone", "texts"):
            torch.testing.assert_close(
                found[name], expected[name], rtol=1e-4, atol=1e-5, equal_nan=True
            )
    assert len(list(tmp_path.iterdir())) == 3


@pytest.fixture
def built(monkeypatch) -> list[tuple[str, ...]]:
    """Names of the classifiers that are built, as they are."""
    from clipfast.eval.zeroshot import cache

    names: list[tuple[str, ...]] = []
    build = cache.build_classifier

    def count(encoder, given, templates):
        names.append(tuple(given))
        return build(encoder, given, templates)

    monkeypatch.setattr(cache, "build_classifier", count)
    return names


def test_cache_serves_the_same_and_nothing_else(tmp_path, built):
    cache = ClassifierCache(tmp_path / "cache")
    first = cache.classifier(encoder(), "birds/a", NAMES, TEMPLATES)
    assert torch.equal(cache.classifier(encoder(), "birds/a", NAMES, TEMPLATES), first)
    assert len(built) == 1
    other = tiny_model()
    with torch.no_grad():
        other.ln_final.bias[0] += 1
    for model, names, templates in (
        (other, NAMES, TEMPLATES),
        (tiny_model(), NAMES[::-1], TEMPLATES),
        (tiny_model(), NAMES, TEMPLATES[::-1]),
    ):
        found = cache.classifier(encoder(model), "birds/a", names, templates)
        expected = build_classifier(encoder(model), names, templates)
        assert torch.equal(found, expected)
    assert len(built) == 4
    # What images are encoded with does not count.
    with torch.no_grad():
        other.visual.proj[0, 0] += 1
        other.logit_scale += 1
    cache.classifier(encoder(other), "birds/a", NAMES, TEMPLATES)
    assert len(built) == 4


@pytest.mark.parametrize("fault", ["foreign", "cut", "shape", "text"])
def test_cache_names_a_file_that_does_not_fit_and_builds_anew(tmp_path, built, caplog, fault):
    cache = ClassifierCache(tmp_path)
    first = cache.classifier(encoder(), "birds", NAMES, TEMPLATES)
    (path,) = tmp_path.iterdir()
    if fault == "foreign":
        cache.classifier(encoder(), "other", NAMES[:3], TEMPLATES)
        (other,) = (p for p in tmp_path.iterdir() if p != path)
        path.write_bytes(other.read_bytes())
        words = "is of other names: built anew"
    elif fault == "cut":
        path.write_bytes(path.read_bytes()[:-30])
        words = "cannot be read and is built anew"
    elif fault == "shape":
        with np.load(path) as file:
            np.savez(path, weights=file["weights"][:-1], about=file["about"])
        words = "holds no 6 x 256 finite numbers"
    else:
        path.write_text("nothing")
        words = "cannot be read and is built anew"
    count = len(built)
    assert torch.equal(cache.classifier(encoder(), "birds", NAMES, TEMPLATES), first)
    assert len(built) == count + 1
    assert f"cached classifier {path}" in caplog.text
    assert words in caplog.text
    cache.classifier(encoder(), "birds", NAMES, TEMPLATES)
    assert len(built) == count + 1


def test_predict_gives_probabilities_with_the_learned_scale(tmp_path):
    model = tiny_model()
    with torch.no_grad():
        model.logit_scale.fill_(np.log(20.0))
    files = [picture(i) for i in range(5)]
    found = ZeroShot(model, NAMES, TEMPLATES, batch_size=2).predict(files)
    images = torch.stack([clipfast.preprocess(model)(file) for file in files])
    with torch.no_grad():
        features = F.normalize(model.encode_image(images), dim=1)
    weights = build_classifier(encoder(model), NAMES, TEMPLATES)
    torch.testing.assert_close(found, (20.0 * features @ weights.T).softmax(1))
    torch.testing.assert_close(ZeroShot(model, NAMES, TEMPLATES).predict(images), found)
    assert ZeroShot(model, NAMES).predict([]).shape == (0, len(NAMES))
    half = ZeroShot(model, NAMES, TEMPLATES, dtype=torch.bfloat16).predict(images)
    assert 0 < (half - found).abs().max() < 0.05


@pytest.mark.needs("nvidia.dali")
def test_classify_a_folder_that_open_set_opens(tmp_path):
    folder = write_pictures(tmp_path / "animals", {"cat": 2, "fire_truck": 1})
    found = classify(encoder(), open_set(str(folder)))
    assert [entry["name"] for entry in found.main.per_class] == ["cat", "fire truck"]
    assert found.images == 3


@pytest.mark.needs("nvidia.dali")
def test_table_tells_of_empty_classes_and_of_names_that_stand_twice():
    images = some_set(8)
    names = (*NAMES[:4], "cat", "crane")
    lines = table(classify(encoder(), dataclasses.replace(images, classnames=names)))
    assert any("1 class(es) without an image are left out of means: crane" in x for x in lines)
    assert any("several classes have the name 'cat'" in x for x in lines)


@pytest.mark.needs("nvidia.dali")
def test_classify_the_nine_categories_of_the_emoji_sample():
    sample = Path(clipfast.__file__).parent / "data" / "sample" / "twemoji.tar"
    with tarfile.open(sample) as tar:
        members = {member.name: member for member in tar}
        keys = sorted({name.split(".")[0] for name in members})
        about = [json.load(tar.extractfile(members[f"{key}.json"])) for key in keys]
        # "Component" holds parts of others, such as hair.
        names = sorted({entry["category"] for entry in about} - {"Component"})
        places = {name: label for label, name in enumerate(names)}
        labels = np.array([places.get(entry["category"], -1) for entry in about])
        kept = np.concatenate([np.flatnonzero(labels == label)[:7] for label in range(len(names))])
        files = [tar.extractfile(members[f"{keys[i]}.jpg"]).read() for i in kept.tolist()]
    images = LabelledSet(
        "twemoji", "test", tuple(names), ("an emoji of {c}.",), labels[kept], files.__getitem__
    )
    found = classify(encoder(), images)
    assert len(names) == 9
    assert found.images == 63
    assert not found.unreadable
    recalls = [entry["recall"] for entry in found.main.per_class]
    assert found.main.metrics["mean_per_class_recall"] == pytest.approx(np.mean(recalls))
    assert found.main.metrics["acc1"] == pytest.approx(np.mean(recalls))
    # An untrained model answers as chance does, within the interval.
    low, high = found.main.intervals["acc1"]
    assert low <= 1 / 9 <= high
