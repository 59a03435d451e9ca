"""``python -m clipfast.eval probe`` and ``fewshot``, and features on disk."""

import json

import numpy as np
import pytest
from PIL import Image

from clipfast.eval.__main__ import main
from clipfast.eval.encoding import ImageEncoder
from clipfast.eval.models import load_model
from clipfast.eval.probe import splitsets
from clipfast.eval.probe.features import FeatureCache
from clipfast.eval.sets import LabelledSet, open_set
from tests.eval.tiny import tiny_weights

COLOURS = {"blue": (30, 30, 220), "green": (20, 200, 40), "red": (220, 40, 30)}
pytestmark = pytest.mark.needs("nvidia.dali")


def write_colours(folder, split, images, seed):
    """Noisy pictures, a class per colour: even a model of random weights tells some of them."""
    generator = np.random.default_rng(seed)
    for name, colour in COLOURS.items():
        place = folder / split / name
        place.mkdir(parents=True)
        for i in range(images):
            noise = generator.normal(0, 110, (40, 40, 3))
            pixels = np.clip(np.array(colour) + noise, 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(place / f"{i:02}.png")


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with weights and a set of three splits."""
    tiny_weights(tmp_path).rename(tmp_path / "w.safetensors")
    for seed, (split, images) in enumerate((("train", 12), ("val", 5), ("test", 7))):
        write_colours(tmp_path / "colours", split, images, seed)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def words(task, *more):
    return [task, "--weights", "w.safetensors", "--data", "colours", "--out", "res", *more]


def test_probe_writes_what_scripts_of_clip_benchmark_read(place, capsys):
    assert main(words("probe")) == 0
    path = place / "res" / "colours_ViT-tiny_linear_probe_en.json"
    found = json.loads(path.read_text())
    assert found["task"] == "linear_probe"
    metrics = found["metrics"]
    assert set(metrics) == {"lp_acc1", "lp_acc5", "lp_mean_per_class_recall"}
    assert metrics["lp_acc5"] is None
    assert metrics["lp_acc1"] == pytest.approx(metrics["lp_mean_per_class_recall"])
    assert metrics["lp_acc1"] > 0.5
    low, high = found["intervals"]["lp_acc1"]
    assert low < metrics["lp_acc1"] <= high
    assert found["test_images"] == 21
    assert "6 of 36 train rows (no validation split: 20% were cut off" in found["validation"]
    assert found["lambda"] in [row["lambda"] for row in found["validation_scores"]]
    said = capsys.readouterr().out
    assert "colours (test), linear probe" in said
    assert f"accuracy {metrics['lp_acc1']:.4f} on 21 test rows" in said


def test_probe_takes_a_validation_split_and_encodes_once(place, capsys, monkeypatch):
    assert main(words("probe", "--validation-split", "val")) == 0
    assert "on the 15 rows of the validation split" in capsys.readouterr().out
    files = sorted((place / "res" / "features").glob("*.npy"))
    assert [file.name.split("_")[0] for file in files] == [
        f"colours-{split}-penultimate" for split in ("test", "train", "val")
    ]
    assert all(np.load(file, mmap_mode="r").dtype == np.float16 for file in files)
    before = json.loads((place / "res" / "colours_ViT-tiny_linear_probe_en.json").read_text())

    def refuse(*_):
        raise AssertionError("encoded again")

    monkeypatch.setattr(ImageEncoder, "images", refuse)
    assert main(words("probe", "--validation-split", "val")) == 0
    after = json.loads((place / "res" / "colours_ViT-tiny_linear_probe_en.json").read_text())
    assert after == before
    assert main(words("probe", "--skip-existing")) == 0
    assert "is there already" in capsys.readouterr().out


def test_fewshot_writes_curves_beside_zero_shot(place, capsys):
    assert main(words("fewshot", "--shots", "1", "4", "--seeds", "0", "1")) == 0
    path = place / "res" / "colours_ViT-tiny_few_shot_en.json"
    found = json.loads(path.read_text())
    metrics = found["metrics"]
    assert set(metrics) == {
        "zeroshot_accuracy",
        *(f"{name}_accuracy_{k}_shot" for name in ("lp", "prior") for k in (1, 4)),
    }
    assert np.mean(found["probe"]["scores"][1]) == pytest.approx(metrics["lp_accuracy_4_shot"])
    assert found["zero-shot as prior"]["shots"] == [1, 4]
    said = capsys.readouterr().out
    assert f"zero-shot: {metrics['zeroshot_accuracy']:.2%}" in said
    assert said.count("as good as zero-shot with") == 2
    # The same figure as the subcommand of its own.
    assert main(words("zeroshot")) == 0
    zero_shot = json.loads(
        (place / "res" / "colours_ViT-tiny_zeroshot_classification_en.json").read_text()
    )
    assert zero_shot["metrics"]["acc1"] == pytest.approx(metrics["zeroshot_accuracy"])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--train-split", "nothing"), "nothing"),
        (("--validation-share", "1.5"), "expected a number in (0, 1), got 1.5"),
        (("--metric", "map11"), "'map11' is not one of rows with one class"),
    ],
)
def test_probe_says_what_is_wrong(place, capsys, options, said):
    assert main(words("probe", *options)) == 1
    assert said in capsys.readouterr().err
    assert not list((place / "res").glob("*.json"))


def test_probe_names_splits_with_other_classes(place, capsys, monkeypatch):
    def open_other(source, *, split, **words):
        names = ("cat", "dog") if split == "train" else ("cat", "owl")
        return LabelledSet("pets", split, names, ("{c}",), np.arange(2), lambda i: b"")

    monkeypatch.setattr(splitsets, "open_set", open_other)
    assert main(words("probe")) == 1
    assert "splits 'train' and 'test' have other classes ('dog' and 'owl')" in (
        capsys.readouterr().err
    )


def test_probe_names_a_class_without_train_images(place):
    (place / "colours" / "train" / "red").rename(place / "colours" / "train" / "pink")
    with pytest.warns(UserWarning, match=r"never predicted: 3 \(red\)"):
        assert main(words("probe")) == 0


def test_fewshot_names_a_class_with_too_few_images(place, capsys):
    assert main(words("fewshot", "--shots", "13")) == 1
    assert "'blue' has 12" in capsys.readouterr().err


@pytest.fixture
def encoder(place):
    loaded = load_model(None, place / "w.safetensors")
    return ImageEncoder(loaded.model, loaded.preprocessing)


def test_features_on_disk_are_the_models_in_half_precision(place, encoder):
    images = open_set("colours", split="test")
    stored = FeatureCache(place / "f").features(encoder, images, "penultimate")
    assert isinstance(stored.features, np.memmap)
    expected = encoder.images(images, "penultimate").numpy()
    np.testing.assert_allclose(stored.features, expected, rtol=1e-3, atol=1e-4)
    about = json.loads(stored.path.with_suffix(".json").read_text())
    assert (about["layer"], about["images"]) == ("penultimate", 21)


def test_features_of_other_weights_layers_and_images_are_other_files(place, encoder):
    cache = FeatureCache(place / "f")
    images = open_set("colours", split="test")
    paths = [cache.features(encoder, images, layer).path for layer in ("penultimate", "projected")]
    encoder.model.visual.ln_post.weight.data += 0.5
    paths.append(cache.features(encoder, images, "projected").path)
    encoder.model.token_embedding.weight.data += 0.5
    assert cache.features(encoder, images, "projected").path == paths[-1]
    encoder.resize = "pillow"
    paths.append(cache.features(encoder, images, "projected").path)
    first = next((place / "colours" / "test" / "blue").iterdir())
    Image.new("RGB", (9, 9)).save(sorted(first.parent.iterdir())[0])
    paths.append(cache.features(encoder, open_set("colours", split="test"), "projected").path)
    assert len(set(paths)) == 5


def test_features_leave_out_images_that_do_not_decode(place, encoder, caplog):
    (place / "colours" / "test" / "green" / "03.png").write_bytes(b"\x89PNG no more")
    cache = FeatureCache(place / "f")
    images = open_set("colours", split="test")
    for _ in range(2):
        stored = cache.features(encoder, images, "penultimate")
        labelled = stored.labelled(images.labels)
        assert len(labelled.features) == len(labelled.labels) == 20
        assert np.isfinite(labelled.features).all()
        assert labelled.labels.tolist() == np.delete(images.labels, 10).tolist()
    assert "1 of 21 images did not decode" in caplog.text


def test_features_beyond_half_precision_are_refused(place, encoder):
    encoder.model.visual.ln_post.weight.data *= 1e6
    images = open_set("colours", split="test")
    with pytest.raises(ValueError, match="half precision ends at 65,504"):
        FeatureCache(place / "f").features(encoder, images, "penultimate")
    assert not (place / "f").exists()
