"""``python -m clipfast.eval``, and ``clipfast.eval.run``."""

import json

import pytest

import clipfast.eval
from clipfast.eval.__main__ import main
from tests.eval.tiny import picture, tiny_weights, write_pictures

COUNTS = {"bird": 2, "cat": 3, "dog": 1, "fire_truck": 2, "hare": 1}
pytestmark = pytest.mark.needs("nvidia.dali")


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with weights and a set."""
    tiny_weights(tmp_path).rename(tmp_path / "w.safetensors")
    write_pictures(tmp_path / "animals", COUNTS)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_zeroshot_writes_what_scripts_of_clip_benchmark_read(place, capsys):
    assert (
        main(["zeroshot", "--weights", "w.safetensors", "--data", "animals", "--out", "res"]) == 0
    )
    path = place / "res" / "animals_ViT-tiny_zeroshot_classification_en.json"
    found = json.loads(path.read_text())
    assert found["dataset"] == "animals"
    assert found["model"] == "ViT-tiny"
    assert found["pretrained"] == "w.safetensors"
    assert found["task"] == "zeroshot_classification"
    assert found["language"] == "en"
    metrics = found["metrics"]
    assert 0 <= metrics["acc1"] <= metrics["acc5"] == 1
    assert 0 <= metrics["mean_per_class_recall"] <= 1
    assert found["images"] == sum(COUNTS.values())
    assert set(found["prompts"]) == {"names", "one prompt", "ensemble"}
    said = capsys.readouterr().out
    assert f"{metrics['acc1']:.2%}" in said
    assert "images/s" in said
    assert str(path.relative_to(place)) in said


def test_zeroshot_skips_what_is_there(place, capsys):
    words = ["zeroshot", "--weights", "w.safetensors", "--data", "animals", "--out", "res"]
    assert main(words) == 0
    (path,) = (place / "res").glob("*.json")
    before = path.stat().st_mtime_ns
    assert main([*words, "--skip-existing"]) == 0
    weights = (place / "w.safetensors").rename(place / "away")
    # With the model's name the weights are not read.
    assert main([*words, "--skip-existing", "--model", "ViT-tiny"]) == 0
    assert path.stat().st_mtime_ns == before
    assert capsys.readouterr().out.count("is there already") == 2
    weights.rename(place / "w.safetensors")
    assert main(words) == 0
    assert path.stat().st_mtime_ns > before


def test_zeroshot_does_not_skip_the_result_of_other_weights(place, capsys):
    words = ["zeroshot", "--data", "animals", "--out", "res", "--skip-existing", "--weights"]
    assert main([*words, "w.safetensors"]) == 0
    (place / "w.safetensors").rename(place / "v.safetensors")
    assert main([*words, "v.safetensors"]) == 1
    assert "is of the weights 'w.safetensors', not of 'v.safetensors'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--data nowhere", "nowhere"),
        ("--data animals --templates t.txt", "template 1: 'a photo' has no slot {c}"),
        ("--data animals --classnames c.txt", "there are 2 class names"),
        ("--data animals --model RN50", "does not fit RN50"),
        ("--data animals --batch-size 0", "batch_size"),
    ],
)
def test_zeroshot_says_what_is_wrong(place, capsys, words, said):
    (place / "t.txt").write_text("a photo\n")
    (place / "c.txt").write_text("a\nb\n")
    assert main(["zeroshot", "--weights", "w.safetensors", *words.split()]) == 1
    assert said in capsys.readouterr().err
    assert not (place / "results").exists()


@pytest.mark.parametrize("more", [[], ["--precision", "bf16", "--device", "cpu"]])
def test_predict_prints_the_likeliest_names(place, capsys, more):
    (place / "a.png").write_bytes(picture(0))
    words = ["predict", "--weights", "w.safetensors", "--names", "cat, dog,fire truck", "a.png"]
    assert main([*words, *more]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "a.png"
    shares = [float(line.split("%")[0]) for line in lines[1:]]
    assert shares == sorted(shares, reverse=True)
    assert sum(shares) == pytest.approx(100, abs=0.2)
    assert {line.split("%  ")[1] for line in lines[1:]} == {"cat", "dog", "fire truck"}


def test_predict_names_an_image_that_cannot_be_read(place, capsys):
    (place / "a.png").write_bytes(picture(0)[:99])
    words = ["predict", "--weights", "w.safetensors", "--names", "cat,dog", "a.png"]
    assert main(words) == 1
    assert "a.png cannot be read" in capsys.readouterr().err


def test_run_is_the_command(place, capsys):
    found = clipfast.eval.run("zeroshot", weights="w.safetensors", data="animals", batch_size=2)
    (path,) = (place / "results").glob("*.json")
    assert json.loads(path.read_text()) == found
    names = clipfast.eval.run(
        "predict", weights="w.safetensors", names=["cat", "dog"], images=["animals/cat/0.png"]
    )
    assert names["animals/cat/0.png"]["cat"] + names["animals/cat/0.png"]["dog"] == pytest.approx(1)


@pytest.mark.parametrize(
    ("task", "options", "words"),
    [
        ("zero-shot", {}, "no evaluation 'zero-shot'. Did you mean 'zeroshot'"),
        ("zeroshot", {"weigths": "w"}, "no option 'weigths'. Did you mean 'weights'"),
        ("zeroshot", {"data": "animals"}, "zeroshot needs weights="),
        ("zeroshot", {"data": "p", "weights": "w", "precision": "x"}, "precision must be one of"),
    ],
)
def test_run_says_what_is_wrong(task, options, words):
    with pytest.raises(ValueError, match=words):
        clipfast.eval.run(task, **options)
