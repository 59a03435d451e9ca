"""Services that show a run: what they get, over a resume too, and what a failure of one does."""

import json
import sqlite3
import struct
from pathlib import Path

import pytest

from clipfast.engine import ConfigError, LoggingConfig, sinks
from clipfast.engine.metrics import Metrics
from clipfast.engine.sinks import require_packages
from clipfast.engine.sinks.sent import Sent
from tests.needs import need

RUN = "0123456789ab"
QUIET = {"tensorboard": False, "progress": False}


def write(folder: Path, options: LoggingConfig, first: int, last: int, *, ends: bool = True):
    """Rows of the steps behind ``first``; a run that is killed closes nothing."""
    metrics = Metrics(folder, options, 10, first, active=True, run=RUN)
    metrics.describe({"seed": 3}, "recipe --seed 3")
    for step in range(first + 1, last + 1):
        metrics.log(step, {"loss": float(step)} | dict.fromkeys(("images_per_second", "lr"), 1.0))
        metrics.log(step, {"eval/sample/R@1": step / 10})
    if ends:
        metrics.close()
    return metrics


class Broken:
    """A service that fails at the second row."""

    def __init__(self, started) -> None:
        self.rows = 0

    def log(self, step, tags) -> None:
        self.rows += 1
        if self.rows == 2:
            raise ConnectionError("no route to host")

    def describe(self, config, command) -> None:
        pass

    def close(self) -> None:
        raise AssertionError("it was given up")


def test_a_service_that_fails_is_given_up_and_every_row_is_written(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sinks._SINKS, "trackio", ("Trackio", Broken))
    write(tmp_path, LoggingConfig(trackio="p", **QUIET), 0, 3)
    told = capsys.readouterr().out.splitlines()
    words = "Trackio is no longer written: no route to host. metrics.jsonl has everything"
    assert told == [words]
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [0, 1, 1, 2, 2, 3, 3]


def test_a_service_that_does_not_begin_ends_no_run(tmp_path, monkeypatch, capsys):
    def fails(started):
        raise TimeoutError("90 s without an answer")

    monkeypatch.setitem(sinks._SINKS, "wandb", ("Weights & Biases", fails))
    write(tmp_path, LoggingConfig(wandb="p", **QUIET), 0, 1)
    assert "Weights & Biases is no longer written: 90 s without" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["wandb", "trackio", "tensorboard"])
def test_a_missing_package_is_named_with_its_command_before_the_run(monkeypatch, name):
    monkeypatch.setattr(sinks, "find_spec", lambda package: None)
    options = LoggingConfig(**{"tensorboard": False, name: True if name == "tensorboard" else "p"})
    with pytest.raises(ConfigError, match=rf"--logging\.{name}: .*pip install {name}"):
        require_packages(options)
    require_packages(LoggingConfig(tensorboard=False))


def test_sent_sends_no_step_twice_and_none_never(tmp_path):
    path = tmp_path / "sent.json"
    sent = Sent(path, RUN)
    assert all(sent.wants(step) for step in (1, 1, 2, 3, 3))
    # Killed: the rows of step 3 may not have been sent, those before it were.
    again = Sent(path, RUN)
    assert [again.wants(step) for step in (2, 3, 4)] == [False, True, True]
    again.close()
    # Ended: all of them were.
    assert [Sent(path, RUN).wants(step) for step in (4, 5)] == [False, True]
    assert Sent(path, "another").wants(1)
    path.write_text("{")
    assert Sent(path, RUN).wants(1)


def wandb_rows(file: Path) -> tuple[str, list[tuple[int, dict]]]:
    """Id of the run and rows of a file of Weights & Biases: a log of LevelDB with records of
    protobuf."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, place, parts, run, rows = file.read_bytes(), 7, b"", "", []
    while place + 7 <= len(data):
        left = 32768 - place % 32768
        if left < 7:
            place += left
            continue
        length, kind = struct.unpack_from("<HB", data, place + 4)
        parts += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or last of several
            record = Record.FromString(parts)
            parts = b""
            run = record.run.run_id or run
            if items := record.history.item:
                values = {i.key or "/".join(i.nested_key): json.loads(i.value_json) for i in items}
                rows.append((values.pop("_step"), values))
    return run, rows


def test_wandb_goes_on_in_the_same_run_and_sends_no_step_twice(tmp_path, monkeypatch):
    need("wandb")
    import wandb

    monkeypatch.setenv("WANDB_MODE", "offline")
    options = LoggingConfig(wandb="clipfast-tests", **QUIET)
    write(tmp_path / "emoji", options, 0, 5)
    # From the checkpoint of step 3, over what was sent already.
    write(tmp_path / "emoji", options, 3, 7)
    wandb.teardown()
    files = sorted((tmp_path / "emoji" / "wandb").rglob("*.wandb"))
    sessions = [wandb_rows(file) for file in files]
    assert [run for run, _ in sessions] == [RUN, RUN]
    steps = [[step for step, _ in rows] for _, rows in sessions]
    assert steps == [[1, 2, 3, 4, 5], [6, 7]]
    _, last = sessions[1][1][-1]
    assert (last["train/loss"], last["eval/sample/R@1"]) == (7.0, 0.7)


def test_trackio_goes_on_in_the_same_run_and_has_no_step_twice(tmp_path, monkeypatch):
    need("trackio")
    import trackio.sqlite_storage as storage

    monkeypatch.setattr(storage, "TRACKIO_DIR", tmp_path / "trackio")
    options = LoggingConfig(trackio="clipfast-tests", **QUIET)
    write(tmp_path / "emoji", options, 0, 5)
    write(tmp_path / "emoji", options, 3, 7)
    (database,) = (tmp_path / "trackio").glob("*.db")
    with sqlite3.connect(database) as opened:
        rows = opened.execute("SELECT run_name, step, metrics FROM metrics").fetchall()
    assert {name for name, _, _ in rows} == {f"emoji {RUN}"}
    values = [(step, json.loads(text)) for _, step, text in rows]
    losses = {step: row["train/loss"] for step, row in values if "train/loss" in row}
    assert losses == {step: float(step) for step in range(1, 8)}
    assert len(rows) == 2 * len(losses)
