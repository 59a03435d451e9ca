"""``python -m clipfast.eval robustness``."""

import json

import numpy as np
import pytest
from PIL import Image

import clipfast.eval
from clipfast.eval.__main__ import main
from tests.eval.tiny import tiny_weights

COLOURS = {"blue": (30, 30, 220), "green": (20, 200, 40), "red": (220, 40, 30)}
pytestmark = pytest.mark.needs("nvidia.dali")


def write_colours(folder, images, seed, colours=COLOURS, names=None):
    """Noisy pictures, a class per colour: even a model of random weights tells some of them."""
    generator = np.random.default_rng(seed)
    for name, colour in colours.items():
        place = folder / (names or {}).get(name, name)
        place.mkdir(parents=True)
        for i in range(images):
            pixels = np.array(colour) + generator.normal(0, 90, (40, 40, 3))
            Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(place / f"{i:02}.png")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("robustness")
    tiny_weights(folder).rename(folder / "w.safetensors")
    for seed, (split, images) in enumerate((("train", 12), ("test", 7))):
        write_colours(folder / "colours" / split, images, seed)
    write_colours(folder / "few", 5, 9, {name: COLOURS[name] for name in ("red", "blue")})
    names = {"blue": "cold", "red": "warm"}
    write_colours(folder / "coarse", 4, 11, {n: COLOURS[n] for n in names}, names)
    mapping = {"cold": ["blue", "green"], "warm": ["red"]}
    (folder / "m.json").write_text(json.dumps(mapping))
    rows = ["a,few,0.4,0.3", "b,few,0.6,0.5", "c,few,0.8,0.75", "a,coarse,0.4,0.2"]
    (folder / "b.csv").write_text("\n".join(["model,shift,reference_acc1,shift_acc1", *rows]))
    return folder


@pytest.fixture
def place(made, monkeypatch, tmp_path):
    monkeypatch.chdir(made)
    return tmp_path


def words(place, *more):
    return [
        *("robustness", "--weights", "w.safetensors", "--data", "colours"),
        *("--out", str(place / "res"), "--cache", "classifiers", "--features", "features"),
        *more,
    ]


def test_robustness_writes_all_classifiers_of_all_shifts(place, capsys):
    given = ["--shifts", "few", "coarse", "corrupted:fog:3", "--mapping", "coarse=m.json"]
    given += ["--baselines", "b.csv", "--relative-to", "a", "--adapted"]
    given += ["--plot", str(place / "r.png")]
    assert main(words(place, *given)) == 0
    path = place / "res" / "colours_ViT-tiny_robustness_en.json"
    found = json.loads(path.read_text())
    assert (found["task"], found["dataset"], found["images"]) == ("robustness", "colours", 21)
    assert [(one["dataset"], one["classifier"]) for one in found["shifts"]] == [
        ("few", "zeroshot"),
        ("few", "adapted"),
        ("coarse", "superclass_max"),
        ("coarse", "own_names"),
        ("coarse", "adapted"),
        ("colours-c/fog-3", "zeroshot"),
        ("colours-c/fog-3", "adapted"),
    ]
    for one in found["shifts"]:
        low, high = one["interval"]
        assert low <= one["acc1"] <= high
    few, adapted, coarse = found["shifts"][:3]
    assert few["images"] == 10
    assert adapted["acc1"] > 0.6
    assert list(found["fit"]) == ["few"]
    line = found["fit"]["few"]
    at = np.clip(few["reference_acc1"], 1e-300, 1 - 1e-16)
    expected = 1 / (1 + np.exp(-(line["slope"] * np.log(at / (1 - at)) + line["intercept"])))
    assert few["effective_robustness"] == pytest.approx(few["acc1"] - expected)
    assert few["relative_robustness"] == pytest.approx(few["acc1"] - 0.3)
    assert coarse["effective_robustness"] is None
    assert coarse["relative_robustness"] == pytest.approx(coarse["acc1"] - 0.2)
    assert line["models"] == 3
    assert found["metrics"]["few_adapted_acc1"] == adapted["acc1"]
    assert found["metrics"]["mean_corruption_acc1"] == found["shifts"][5]["acc1"]
    assert set(found["corruptions"]) == {"zeroshot", "adapted"}
    assert Image.open(place / "r.png").width > 1000
    said = capsys.readouterr().out
    assert "99.5% interval" in said
    assert "line of 3 models" in said
    assert "adapted, corrupted" in said
    # A result is a baseline of another run.
    again = ["--shifts", "few", "--baseline-results", str(path), "--limit", "7"]
    assert main(words(place, *again)) == 0
    found = json.loads(path.read_text())
    assert found["images"] == 7
    assert [one["acc1"] for one in found["baselines"]] == [adapted["acc1"]]
    assert main(words(place, *again, "--skip-existing")) == 0
    assert "is there already" in capsys.readouterr().out
    other = ["--shifts", "corrupted:fog:3", "--adapted", "--skip-existing"]
    assert main(words(place, *other)) == 1
    assert "is of other options (shifts, --limit, --adapted)" in capsys.readouterr().err


def test_adapted_is_the_probe_where_all_classes_are_asked(place):
    found = clipfast.eval.run(
        "robustness", weights="w.safetensors", data="colours", shifts=["corrupted:contrast:1"],
        adapted=True, out=place / "res", features="features",
    )  # fmt: skip
    probe = clipfast.eval.run(
        "probe", weights="w.safetensors", data="colours", out=place / "res", features="features"
    )
    (adapted,) = (one for one in found["shifts"] if one["classifier"] == "adapted")
    assert adapted["reference_acc1"] == probe["metrics"]["lp_acc1"]


def test_adapted_tells_sets_of_one_name_apart(place, tmp_path):
    """A shift that is called as the reference is has features of its own."""
    write_colours(tmp_path / "colours", 3, 5, {name: COLOURS["red"] for name in COLOURS})
    found = clipfast.eval.run(
        "robustness", weights="w.safetensors", data="colours", out=place / "res",
        shifts=str(tmp_path / "colours"), adapted=True, features="features",
    )  # fmt: skip
    (adapted,) = (one for one in found["shifts"] if one["classifier"] == "adapted")
    assert adapted["images"] == 9
    assert adapted["acc1"] < 0.5 < adapted["reference_acc1"]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ("--shifts coarse", "Give --mapping coarse=FILE"),
        ("--shifts few --mapping coarse=m.json", "a mapping of 'coarse', and no such shift"),
        ("--shifts few --mapping m.json", "--mapping 'm.json': write SHIFT=FILE"),
        ("--shifts few --relative-to z", "no baseline is called so"),
        ("--shifts few --baselines none.csv", "cannot read 'none.csv'"),
        ("--shifts few few", "two shifts are called 'few'"),
        ("--shifts few --limit 0", "--limit must be at least 1"),
        ("--shifts few --adapted --train-split none", "none"),
        ("--shifts few --adapted --train-split test", "is what is tested, too"),
    ],
)
def test_robustness_says_what_is_wrong(place, capsys, more, said):
    assert main(words(place, *more.split())) == 1
    assert said in capsys.readouterr().err
    assert not list(place.glob("res/*.json"))
