"""benchmarks.report --rows: a suite's run is shown, and taken over beside other cards' rows."""

from __future__ import annotations

import json

import pytest

from benchmarks import report, tables
from benchmarks.parts.common.schema import to_record
from benchmarks.parts.report.merge import key_of, merge, read_folder
from benchmarks.parts.report.summary import summary


def record(name="clipfast, keep", median=10.0, card="H100", commit="1111111+changes", **fields):
    stamp = {"clipfast": "0.2.0", "commit": commit, "date": "2026-01-01"}
    stamp["device"] = {"gpus": [{"name": card}]}
    row = {"subject": "loss_throughput", "name": name, "device": "cuda", "median_ms": median}
    row |= {"batch": 64, "dim": 16, "ranks": 1, "dtype": "bfloat16", "ratio_to_floor": 1.25}
    return to_record({**row, "environment": stamp, **fields})


def write(path, records):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(one) + "\n" for one in records))


def test_merge_replaces_the_same_case_of_the_same_card_alone(tmp_path):
    other_case, other_type = record(batch=128), record(dtype="float16")
    other_card, host = record(card="H200"), record(device="cpu")
    old = [record(), record("OpenCLIP 3.3.0", 40.0), other_case, other_type, other_card, host]
    write(tmp_path / "results" / "loss_throughput.jsonl", old)
    new = [record(median=8.0, commit="2222222"), record("clipfast, recompute", commit="2222222")]
    write(tmp_path / "run" / "rows" / "loss.jsonl", new)
    told = merge(read_folder(tmp_path / "run"), tmp_path / "results")
    assert told[0].endswith("loss_throughput.jsonl: 2 rows came, 2 went, 4 stay")
    lines = (tmp_path / "results" / "loss_throughput.jsonl").read_text().splitlines()
    assert list(map(json.loads, lines)) == [other_case, other_type, other_card, host, *new]


def test_merge_knows_one_card_from_another():
    keys = {key_of(record()), key_of(record(card="H200")), key_of(record(device="cpu"))}
    assert len(keys) == 3
    assert key_of(record(device="cuda:1")) == key_of(record())


def test_summary_names_card_commit_and_every_row(tmp_path):
    row = record("siglip-kernel 0.1.2, sigmoid loss", error_loss=2e-3, peak_extra_bytes=3 << 20)
    told = summary([record(launch="graph"), row])
    assert "loss_throughput, H100, 1111111 with changes" in told
    assert "batch 64, dim 16, ranks 1" in told
    ours, theirs = told.splitlines()[-2:]
    assert ours.split() == [
        *("clipfast,", "keep", "bf16", "graph", "10.0", "ms"),
        *("1.25",),
    ]
    assert theirs.split()[-3:] == ["3", "2e-03", "1.25"]


def test_a_line_that_is_no_row_is_named(tmp_path):
    write(tmp_path / "x.jsonl", [record(), {**record(), "median": "fast"}])
    with pytest.raises(SystemExit, match=r"x\.jsonl:2: row .* median: expected int or float"):
        read_folder(tmp_path)
    (tmp_path / "x.jsonl").write_text('{"schema": 1')
    with pytest.raises(SystemExit, match=r"x\.jsonl:1: "):
        read_folder(tmp_path)


def test_report_shows_a_folder_and_changes_nothing(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(report, "documents", lambda: pytest.fail("pages are not asked for"))
    write(tmp_path / "rows" / "loss.jsonl", [record()])
    report.main(["--rows", str(tmp_path)])
    assert "clipfast, keep" in capsys.readouterr().out
    with pytest.raises(SystemExit, match=r"no rows; expected rows/NAME\.jsonl"):
        report.main(["--rows", str(tmp_path / "empty")])
    with pytest.raises(SystemExit, match="--merge: --rows names the folder"):
        report.main(["--merge"])


def test_the_old_name_still_runs_and_says_the_new_one(monkeypatch):
    monkeypatch.setattr(report, "documents", list)
    with pytest.warns(FutureWarning, match=r"benchmarks\.tables is benchmarks\.report now"):
        tables.main(["--check"])
