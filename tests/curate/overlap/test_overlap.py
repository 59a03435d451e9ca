"""overlap: planted images are found, the chain from zero-shot answers to the page."""

import csv
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import ImageOps

from clipfast.curate import main
from clipfast.curate.engine import read_table
from clipfast.curate.overlap.answers import read_answers
from clipfast.curate.overlap.evalset import eval_sets
from clipfast.eval.__main__ import main as evaluate
from clipfast.eval.zeroshot.peranswer import write_answers
from tests.curate.near.test_near import one, png
from tests.curate.shards import make_shard
from tests.eval.tiny import tiny_weights

pytestmark = pytest.mark.needs("pyarrow", "scipy", "ftfy", "matplotlib")


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """Animals: 3 cats and 4 dogs, one of which is broken. The training set holds cat 1, smaller,
    and the mirror of dog 0, in two shards."""
    folder = tmp_path_factory.mktemp("overlap")
    for name, count, seed in (("cat", 3, 0), ("dog", 3, 10)):
        (folder / "animals" / "test" / name).mkdir(parents=True)
        for i in range(count):
            (folder / "animals" / "test" / name / f"{i}.png").write_bytes(png(one(seed + i)))
    (folder / "animals" / "test" / "dog" / "3.png").write_bytes(b"no picture")
    first = [("x", "something", png(one(20))), ("c", "a cat", png(one(1).resize((48, 48))))]
    second = [
        ("broken", "nothing", b"no picture"),
        ("y", "something else", png(one(21))),
        ("m", "a dog", png(ImageOps.mirror(one(10)))),
    ]
    make_shard(folder / "0.tar", first)
    make_shard(folder / "1.tar", second)
    make_shard(folder / "none.tar", [("broken", "nothing", b"no picture")])
    return folder


def overlap(place: Path, out: Path, *options: str, threshold: str = "0.9") -> dict:
    words = ["overlap", str(place / "animals"), "--train", str(place / "[01n]*.tar")]
    words += ["--detector", "hash", "--threshold", threshold, "--out", str(out), "--workers", "1"]
    assert main([*words, *options]) == 0
    return json.loads((out / "overlap.json").read_text())


def test_overlap_finds_what_is_planted(place, tmp_path, capsys):
    found = overlap(place, tmp_path / "o")
    assert "animals: 1 of 6 images overlap (16.67%) at 0.9" in capsys.readouterr().out
    (entry,) = found["sets"]
    assert (entry["images"], entry["overlap"], entry["unreadable"]) == (6, 1, 1)
    assert entry["effect"] is None
    rows = read_table(str(tmp_path / "o" / "pairs.parquet")).to_pylist()
    assert [row["image"] for row in rows] == [0, 1, 2, 3, 4, 5]
    (row,) = [row for row in rows if row["overlaps"]]
    assert (row["image"], row["shard"], row["row"]) == (1, "0.tar", 1)
    same = overlap(place, tmp_path / "s", "--flips", "same")
    assert same["sets"][0]["overlap"] == 2
    rows = read_table(str(tmp_path / "s" / "pairs.parquet")).to_pylist()
    found = [(row["image"], row["shard"], row["row"]) for row in rows if row["overlaps"]]
    assert found == [(1, "0.tar", 1), (3, "1.tar", 2)]


def test_overlap_from_zero_shot_answers_to_the_page(place, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    weights = str(tiny_weights(tmp_path))
    words = ["zeroshot", "--weights", weights, "--data", str(place / "animals"), "--out", "res"]
    assert evaluate([*words, "--answers", "answers.csv"]) == 0
    with open("answers.csv", newline="") as file:
        said = list(csv.DictReader(file))
    assert [int(row["row"]) for row in said] == [0, 1, 2, 3, 4, 5]
    assert [row["label"] for row in said] == ["cat"] * 3 + ["dog"] * 3
    result = json.loads(next(Path("res").glob("*.json")).read_text())
    right = sum(int(row["correct"]) for row in said)
    assert result["metrics"]["acc1"] == pytest.approx(right / 6)
    same = [int(row["label"] == row["predicted"]) for row in said]
    assert same == [int(row["correct"]) for row in said]

    found = overlap(place, tmp_path / "o", "--answers", "animals=answers.csv")
    effect = found["sets"][0]["effect"]
    assert effect["all"] == {"images": 6, "right": right, "accuracy": right / 6}
    assert effect["overlap"]["images"] == 1
    assert effect["overlap"]["right"] == same[1]
    assert effect["significant"] in ("no", "yes", "Bonferroni")
    assert found["tests"] == 1
    text = Path("o", "overlap.html").read_text()
    for words in ("Figure 17", "Overlap, just above the threshold (1)", "animals 1, 64 x 64"):
        assert words in text
    assert text.count("data:image/png;base64,") == 4
    assert not re.findall(r"(?:src|href|srcset)=\"(?!data:|#)", text)


def test_answers_are_written_as_csv_and_as_parquet(tmp_path):
    places, labels, predicted = (torch.tensor(rows) for rows in ([0, 2, 5], [1, 0, 1], [1, 1, 0]))
    for name in ("deep/a.csv", "a.parquet"):
        write_answers(tmp_path / name, places, labels, predicted, ["a cat", "a dog"])
        rows, correct = read_answers(str(tmp_path / name), 6)
        assert rows.tolist() == [0, 2, 5]
        assert correct.tolist() == [True, False, False]
    table = read_table(str(tmp_path / "a.parquet")).to_pylist()
    assert table[1] == {"row": 2, "label": "a cat", "predicted": "a dog", "correct": 0}


def test_overlap_takes_a_threshold_per_set(place, tmp_path, capsys):
    found = overlap(place, tmp_path / "o", threshold="animals=-0.9")
    assert found["sets"][0]["overlap"] == 6
    words = ["overlap", str(place / "animals"), "--train", str(place / "0.tar"), "--out", "o"]
    words += ["--detector", "hash", "--workers", "1", "--threshold"]
    for threshold, said in (
        ("plants=0.9", "no set is called 'plants': animals"),
        ("7", "must be above -1 and at most 1, got 7"),
        ("x", "expected a similarity, got 'x'"),
    ):
        assert main([*words, threshold]) == 1
        assert said in capsys.readouterr().err


def test_overlap_refuses_two_sets_of_one_name_and_a_training_set_of_nothing(
    place, tmp_path, capsys
):
    twice = [str(place / "animals"), str(place / "animals") + "/"]
    words = ["--detector", "hash", "--threshold", "0.9", "--out", str(tmp_path), "--workers", "1"]
    assert main(["overlap", *twice, "--train", str(place / "0.tar"), *words]) == 1
    assert "are both called animals" in capsys.readouterr().err
    assert main(["overlap", twice[0], "--train", str(place / "none.tar"), *words]) == 1
    assert "no picture of --train decodes" in capsys.readouterr().err


def test_overlap_of_several_sets_wants_names_for_answers(place, tmp_path, capsys):
    other = tmp_path / "others" / "test" / "cat"
    other.mkdir(parents=True)
    (other / "0.png").write_bytes(png(one(20)))
    (other.parent / "dog").mkdir()
    (other.parent / "dog" / "0.png").write_bytes(png(one(30)))
    (tmp_path / "a.csv").write_text("row,correct\n0,1\n1,0\n")
    sets = str(tmp_path / "others")
    out = tmp_path / "o"
    words = ["overlap", str(place / "animals"), sets, "--train", str(place / "0.tar")]
    words += ["--detector", "hash", "--threshold", "0.9", "--out", str(out), "--workers", "1"]
    assert main([*words, "--answers", str(tmp_path / "a.csv")]) == 1
    assert "of which set? Write NAME=" in capsys.readouterr().err
    assert main([*words, "--answers", f"others={tmp_path / 'a.csv'}"]) == 0
    found = json.loads((out / "overlap.json").read_text())
    assert [entry["overlap"] for entry in found["sets"]] == [1, 1]
    effect = found["sets"][1]["effect"]
    assert (effect["overlap"]["accuracy"], effect["clean"]["accuracy"]) == (1, 0)
    assert effect["p_value"] == 0
    assert effect["significant"] == "Bonferroni"


def test_eval_sets_know_when_an_image_changes(place, tmp_path):
    folder = tmp_path / "animals" / "test" / "cat"
    folder.mkdir(parents=True)
    (folder / "0.png").write_bytes(png(one(0)))
    (folder / "1.png").write_bytes(png(one(1)))
    marks = []
    for seed in (1, 2, 1):
        (folder / "1.png").write_bytes(png(one(seed)))
        (images,) = eval_sets([str(tmp_path / "animals")], "test")
        marks.append(images.mark)
    assert marks[0] == marks[2] != marks[1]
    assert np.unique(marks).size == 2
