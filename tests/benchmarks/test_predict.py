"""Predictions are counted from shapes as the benchmarks themselves count, and meet their rows."""

from __future__ import annotations

import json

import pytest

from benchmarks import suite
from benchmarks.parts.common.rows import read_rows
from benchmarks.parts.predict import counts, table
from benchmarks.parts.predict.cases import predict
from benchmarks.parts.suite import catalogue, part


@pytest.mark.parametrize(
    ("model", "batch", "device"), [("ViT-B/32", 512, "cuda"), ("RN50", 16, "cpu")]
)
def test_steps_are_counted_as_the_flop_counter_counted_them(model, batch, device):
    done = next(
        row["done_flop"]
        for row in read_rows("step_throughput")
        if (row["model"], row["batch"], row["name"]) == (model, batch, "clipfast")
        and row["device"] == device
    )
    # The loss's own products and attention over packed captions were not counted there.
    assert counts.step(model, batch, "web")[0].flop == pytest.approx(done, rel=0.01)


def test_optimizers_move_the_bytes_of_their_rows():
    rows = [row for row in read_rows("adamw") if row["list"] == "ViT-L/14"]
    assert len(rows) >= 10
    for row in rows:
        contender = row["contender"].removesuffix("-graph")
        assert counts.adamw(contender, "ViT-L/14", 0).bytes == row["bytes_moved"]


def test_a_loss_takes_its_products_or_its_traffic():
    kept = counts.loss(1000, 100, "bf16", 6, is_kept=True)
    assert kept.flop == 6 * 1000 * 1000 * 100
    assert kept.bytes == 4 * 1000 * 100 * 2 + 2 * 2 * 1000 * 1000
    assert counts.Work(790e9, 0).floor_ms("H100", "bf16") == pytest.approx(1)
    assert counts.Work(790e9, 0).floor_ms("H100", "tf32") == pytest.approx(2)
    assert counts.Work(790e9, 6e9).floor_ms("H100", "bf16") == pytest.approx(2)
    assert counts.Work(790e9, 6.45e9).floor_ms("H200", "bf16") == pytest.approx(1.5)


def gpu_row(one, median, card="NVIDIA H100", **fields):
    """A row of a prediction as a GPU would have written it."""
    return {
        **{key: getattr(one, key) for key in ("subject", "case", "implementation", "dtype")},
        **{"device_name": card, "median": median, "launch": "eager", "device": "cuda"},
        "environment": {},
        **fields,
    }


def some_loss():
    parts = [one for one in catalogue.parts("cuda") if one.name in ("loss", "loss-fp16")]
    return predict(parts)


def test_what_is_expected_is_what_the_same_kernel_needed_of_its_floor():
    predictions = some_loss()
    bf16, fp16, fp32 = (
        next(
            p for p in predictions if p.dtype == kind and p.implementation == "clipfast cuda, keep"
        )
        for kind in ("bf16", "fp16", "fp32")
    )
    floor = bf16.floor_ms("H200")
    records = [gpu_row(bf16, 9 * floor), gpu_row(bf16, 2 * floor, "NVIDIA H200")]
    same, other = (table.efficiency(one, predictions, records) for one in (bf16, fp16))
    assert same == table.Efficiency(2.0, "row of the H200")
    assert other.ratio == 2.0
    assert other.source == f"row of the H200, {bf16.case}, bf16"
    # Its products have another rate and another library.
    assert table.efficiency(fp32, predictions, records) is None
    # A graph's replay is not what users launch.
    replays = [gpu_row(bf16, floor, "NVIDIA H200", launch="graph")]
    assert table.efficiency(bf16, predictions, replays) is None


def test_a_note_of_a_newer_kernel_comes_before_an_older_row():
    pools = predict([one for one in catalogue.parts("cuda") if one.name == "pool"])
    large = next(one for one in pools if "RN50x64" in one.case)
    records = [gpu_row(large, 6.99, "NVIDIA H200")]
    found = table.efficiency(large, pools, records)
    assert found.ratio * large.floor_ms("H200") == pytest.approx(2.8)
    assert "NOTES" in found.source
    newer = gpu_row(large, 3.5, "NVIDIA H200", environment={"date": "2026-12-01T00:00:00+00:00"})
    found = table.efficiency(large, pools, [newer, *records])
    assert found.ratio * large.floor_ms("H200") == pytest.approx(3.5)


def test_measured_rows_stand_beside_their_predictions():
    one = some_loss()[0]
    replay = gpu_row(one, 11.0, launch="graph", implementation=f"{one.implementation}, graph")
    lines = table.lines([gpu_row(one, 12.5), replay])
    mine = [line for line in lines if line["measured_ms"]["H100"] is not None]
    assert [(line["case"], line["implementation"]) for line in mine] == [
        (one.case, one.implementation)
    ]
    assert table.cells(mine[0], "-")[-1] == "H100 12.5 (graph 11.0)"
    assert {table.cells(line, "-")[-1] for line in lines if line not in mine} == {"-"}
    names = [
        (line["subject"], line["case"], line["implementation"], line["dtype"]) for line in lines
    ]
    assert len(names) == len(set(names)) >= 40


def test_every_part_that_measures_a_gpu_is_predicted_or_says_what_shows_it():
    predicted = {one.part for one in predict(catalogue.parts("cuda"))}
    others = {"data", "tokenizer", "patch-gain"}
    rows = {one.name for one in catalogue.parts("cuda") if one.kind == part.ROWS}
    assert rows - others == predicted | {"loss-rivals"}


def test_suite_predicts_without_running(tmp_path, capsys):
    suite.main(["--predict", "--out", str(tmp_path)])
    assert "loss: batch 524288, dim 512, ranks 1" in capsys.readouterr().out
    lines = (tmp_path / "predictions.jsonl").read_text().splitlines()
    assert json.loads(lines[0])["floor_ms"]["H100"] > 0
