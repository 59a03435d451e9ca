"""benchmarks.zeroshot: rows of both sides, and no figure where they disagree."""

import json

import pytest
import torch

from benchmarks import zeroshot
from benchmarks.parts.common.harness import CheckFailed
from benchmarks.parts.common.schema import validate
from benchmarks.parts.zeroshot import measure
from benchmarks.parts.zeroshot.measure import Said, check

WORDS = ["--model", "ViT-tiny", "--images", "9", "--runs", "1", "--workers", "0"]
WORDS += ["--threads", "1", "--device", "cpu"]
whole = pytest.mark.needs("clip_benchmark", "open_clip", "sklearn", "nvidia.dali")


@whole
def test_zeroshot_benchmark_writes_rows_of_texts_and_images(tmp_path, capsys):
    path = tmp_path / "rows.jsonl"
    zeroshot.main([*WORDS, "--json", str(path)])
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for row in rows:
        validate(row)
    assert [row["role"] for row in rows] == ["ours", "peer", "ours", "ours", "peer"]
    assert {row["peer"] for row in rows} == {None, "CLIP_benchmark"}
    texts, images = rows[:2], rows[2:]
    assert {row["case"] for row in texts} == {"emoji-captions, ViT-tiny, weights random, 36 texts"}
    assert {row["case"] for row in images} == {"emoji-captions, ViT-tiny, weights random, 9 images"}
    assert texts[0]["error"] < 1e-5
    exact, pillow, theirs = (row["own"] for row in images)
    assert pillow["acc1"] == theirs["acc1"]
    assert pillow["mean_per_class_recall"] == pytest.approx(theirs["mean_per_class_recall"])
    assert pillow["said_otherwise"] == 0
    assert exact["items_per_s"] > 0
    assert "x faster" in capsys.readouterr().out


@whole
def test_zeroshot_benchmark_tells_no_time_where_classifiers_differ(tmp_path, capsys, monkeypatch):
    build = measure.build_classifier
    monkeypatch.setattr(measure, "build_classifier", lambda *words: build(*words) + 1e-3)
    path = tmp_path / "rows.jsonl"
    with pytest.raises(CheckFailed, match="the classifiers differ by 1"):
        zeroshot.main([*WORDS, "--json", str(path)])
    assert not path.read_text()
    assert "x faster" not in capsys.readouterr().out


def said(predicted: list[int], acc1: float = 0.5, recall: float = 0.5) -> Said:
    return Said(torch.tensor(predicted), acc1, recall)


def test_zeroshot_benchmark_refuses_other_answers_and_takes_ties():
    scores = torch.tensor([[20.0, 10.0], [20.0, 20.0 - 1e-4]])
    judged = {"points": 5e-4, "is_same": True}
    assert check(said([0, 0]), said([0, 0]), scores, **judged) == 0
    assert check(said([0, 1]), said([0, 0]), scores, **judged) == 1
    with pytest.raises(CheckFailed, match="1 images are said to be of other classes"):
        check(said([1, 0]), said([0, 0]), scores, **judged)
    assert check(said([1, 0]), said([0, 0]), scores, points=5e-4, is_same=False) == 1
    with pytest.raises(CheckFailed, match=r"accuracies 50.1000% and 50.0000%"):
        check(said([0, 0], 0.501), said([0, 0]), scores, **judged)
    with pytest.raises(CheckFailed, match=r"mean recalls 0.6 and 0.5"):
        check(said([0, 0], recall=0.6), said([0, 0]), scores, **judged)


def test_zeroshot_benchmark_says_what_to_install(monkeypatch):
    def absent() -> None:
        raise ImportError("CLIP_benchmark is compared with: pip install --no-deps clip_benchmark")

    monkeypatch.setattr(zeroshot, "functions", absent)
    with pytest.raises(SystemExit, match="pip install --no-deps clip_benchmark"):
        zeroshot.main(WORDS)
