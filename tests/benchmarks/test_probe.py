"""benchmarks.probe: rows of both contenders, and no time where they disagree."""

import json

import pytest

from benchmarks import probe
from benchmarks.parts.common.harness import CheckFailed
from benchmarks.parts.common.schema import validate
from benchmarks.parts.probe import measure
from benchmarks.parts.probe.contenders import Outcome

WORDS = ["--rows", "400", "--dim", "16", "--classes", "3", "--runs", "2", "--device", "cpu"]
pytestmark = pytest.mark.needs("sklearn")


def test_probe_benchmark_writes_a_row_of_each(tmp_path, capsys):
    rows = tmp_path / "rows.jsonl"
    probe.main([*WORDS, "--json", str(rows)])
    ours, theirs = (json.loads(line) for line in rows.read_text().splitlines())
    validate(ours)
    validate(theirs)
    assert (ours["role"], theirs["role"]) == ("ours", "peer")
    assert theirs["peer"] == "scikit-learn"
    assert ours["case"] == theirs["case"] == "400 x 16, 3 classes"
    assert ours["own"]["clock"] == "user CPU"
    assert ours["own"]["accuracy"] == pytest.approx(theirs["own"]["accuracy"], abs=0.02)
    ratio = theirs["own"]["ratio_to_clipfast"]
    assert f"{ratio:.1f}" in capsys.readouterr().out.split("scikit-learn")[1]
    if theirs["p20"] > ours["p80"]:
        assert ratio > 1


@pytest.mark.parametrize(
    ("accuracy", "best", "late", "told"),
    [
        (0.8021, 0.9, 0, "0.8021 and 0.8000 with lambda 1 differ by more than 0.1 point"),
        (0.8, 0.89, 0, "the best validation accuracies are 0.8900 and 0.9000"),
        (0.8, 0.9, 2, "2 fits of clipfast did not converge"),
    ],
)
def test_probe_benchmark_tells_no_time_where_the_check_fails(
    monkeypatch, capsys, tmp_path, accuracy, best, late, told
):
    monkeypatch.setattr(measure, "run_clipfast", lambda *_: Outcome(0.8, 1.0, {48: best}, late))
    monkeypatch.setattr(measure, "run_sklearn", lambda *_: Outcome(0.8, 1.0, {48: 0.9}, 0))
    monkeypatch.setattr(measure, "accuracy_at", lambda *_: accuracy)
    rows = tmp_path / "rows.jsonl"
    with pytest.raises(CheckFailed, match=told):
        probe.main([*WORDS, "--json", str(rows)])
    assert not rows.read_text()
    assert "x faster" not in capsys.readouterr().out
