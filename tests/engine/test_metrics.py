"""Rows, bars and curves: what rank 0 writes, and what it keeps when a run is resumed."""

import json
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from clipfast.engine import LoggingConfig
from clipfast.engine.metrics import Metrics, rate

QUIET = LoggingConfig(tensorboard=False, progress=False)
STEP = {"loss": 2.5, "images_per_second": 120.0, "logit_scale": 14.3, "lr": 1e-3}


def rows(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_metrics_writes_a_row_per_call_at_once(tmp_path):
    metrics = Metrics(tmp_path / "run", QUIET, 10, 0, active=True)
    metrics.log(1, STEP)
    metrics.log(1, {"eval/sample/R@1": 0.5})
    # A run that is killed now has lost nothing.
    written = rows(tmp_path / "run")
    metrics.close()
    assert written.pop(0) == {"step": 0, "run": ""}
    assert [row.pop("step") for row in written] == [1, 1]
    assert all(row.pop("time") > 1e9 for row in written)
    assert written == [STEP, {"eval/sample/R@1": 0.5}]


def test_metrics_of_a_resumed_run_drop_rows_after_its_checkpoint(tmp_path):
    before = [json.dumps({"step": step, "loss": 1.0}) for step in range(1, 6)]
    half = '{"step": 6, "lo'
    (tmp_path / "metrics.jsonl").write_text("\n".join([*before, half]))
    metrics = Metrics(tmp_path, QUIET, 10, 3, active=True, run="a-run")
    metrics.log(4, STEP)
    metrics.close()
    assert [row["step"] for row in rows(tmp_path)] == [0, 1, 2, 3, 4]
    assert rows(tmp_path)[0]["run"] == "a-run"
    assert rows(tmp_path)[-1]["loss"] == 2.5
    # What is no longer in them is not lost.
    aside = (tmp_path / "metrics.set-aside.jsonl").read_text().splitlines()
    assert aside == [*before[3:], half]


def test_metrics_of_a_new_run_begin_anew(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n')
    Metrics(tmp_path, QUIET, 10, 0, active=True).close()
    assert rows(tmp_path) == [{"step": 0, "run": ""}]


def test_metrics_of_other_ranks_write_and_say_nothing(tmp_path, capsys):
    metrics = Metrics(tmp_path / "run", LoggingConfig(), 10, 0, active=False)
    metrics.advance()
    metrics.log(1, STEP)
    metrics.say("a line")
    metrics.close()
    assert not (tmp_path / "run").exists()
    assert capsys.readouterr().out == ""


def test_metrics_shows_a_bar_and_says_lines_above_and_after_it(tmp_path, capfd):
    metrics = Metrics(tmp_path, LoggingConfig(tensorboard=False), 4, 1, active=True)
    metrics.log(2, STEP)
    metrics.advance()
    metrics.say("above", "both")
    metrics.close()
    metrics.say("after")
    shown = capfd.readouterr()
    assert shown.out.split() == ["above", "both", "after"]
    assert "2/4" in shown.err
    assert "loss 2.500, 120 images/s, scale 14.3, lr 1.0e-03" in shown.err


def test_metrics_gives_tensorboard_groups_of_curves(tmp_path):
    metrics = Metrics(tmp_path, LoggingConfig(progress=False), 10, 0, active=True)
    metrics.log(7, {"loss": 2.5, "eval/sample/R@1": 0.5})
    metrics.close()
    events = EventAccumulator(str(tmp_path)).Reload()
    assert set(events.Tags()["scalars"]) == {"train/loss", "eval/sample/R@1"}
    (event,) = events.Scalars("train/loss")
    assert (event.step, event.value) == (7, 2.5)


@pytest.mark.parametrize(
    ("value", "words"), [(12345.6, "12,346"), (100.0, "100"), (99.94, "99.9"), (0.01234, "0.0123")]
)
def test_rate_has_three_digits_at_least(value, words):
    assert rate(value) == words
