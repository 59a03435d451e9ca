"""The optimizers' benchmark checks before it times, counts bytes, and measures states."""

from __future__ import annotations

import sys

import pytest
import torch

from benchmarks import adamw
from benchmarks.parts.adamw import check as adamw_check
from benchmarks.parts.adamw import measure as adamw_measure
from benchmarks.parts.adamw import problem as adamw_problem
from benchmarks.parts.adamw import report as adamw_report
from benchmarks.parts.adamw.contenders import CONTENDERS, make, state_bytes
from benchmarks.parts.common import rows as files
from benchmarks.parts.common.contest import NotMeasured
from clipfast.optim.fused_adamw import FusedAdamW

CPU = torch.device("cpu")
QUICK = ["--quick", "--device", "cpu", "--contenders"]


def test_adamw_times_ours_and_torchs(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(files, "RESULTS", tmp_path)
    keys = ["fp16", "remainder", "stochastic", "torch-fused"]
    adamw.main([*QUICK, *keys, "--save"])
    told = capsys.readouterr().out
    written = files.read_rows("adamw")
    assert [row["contender"] for row in written] == keys
    assert (tmp_path / "adamw.png").stat().st_size > 1000
    states = {row["contender"]: row["state_bytes_per_parameter"] for row in written}
    assert states == pytest.approx(
        {"fp16": 4.01, "remainder": 6.01, "stochastic": 4.01, "torch-fused": 8.0}, abs=0.01
    )
    for row in written:
        assert row["elements"] == 1 << 20
        assert row["name"] in told
        copied = 2 * 8 * row["elements"]
        assert row["of_copy"] * row["ratio_to_copy"] == pytest.approx(row["bytes_moved"] / copied)
        assert row["times_torch_fused"] > 0
    assert written[-1]["times_torch_fused"] == 1.0


def test_models_lists_alternate_with_torchs_step(monkeypatch):
    monkeypatch.setattr(
        adamw_measure, "shapes_of", lambda name, elements: [torch.Size([65, 64])] * 3
    )
    met = []
    measure = adamw_measure.Measurement.measure

    def noted(self, contenders, checks, tick):
        met.append([contender.key for contender in contenders])
        return measure(self, contenders, checks, tick)

    monkeypatch.setattr(adamw_measure.Measurement, "measure", noted)
    keys = ["fp16", "torch-fused", "torch-foreach"]
    checks, wrong = adamw_measure.check_all(keys, CPU)
    rows, absent = adamw_measure.measure_list("RN50x64", 0, CPU, 3, checks)
    assert not wrong + absent
    assert met == [["torch-fused", "fp16"], ["torch-fused"], ["torch-foreach"]]
    assert [row["contender"] for row in rows] == keys
    assert rows[0]["times_torch_fused"] == 1 / rows[0]["ratio_to_torch-fused"]


@pytest.mark.parametrize(
    ("key", "counted"),
    [
        ("fp16", 4 + 4 + 4 + 8 + 4 / 256),
        ("fp16-check", 4 + 4 + 4 + 4 + 8 + 4 / 256),
        ("fp32", 4 + 4 + 4 + 16),
        ("remainder", 2 + 2 + 2 + 4 + 8 + 4 / 256),
        ("stochastic", 2 + 2 + 2 + 8 + 4 / 256),
        ("torch-fused", 28),
        ("torch-fused-bf16", 14),
    ],
)
def test_bytes_are_those_of_reads_and_writes(key, counted):
    assert CONTENDERS[key].bytes_per_element == counted


def test_state_bytes_are_those_of_all_tensors():
    param = torch.zeros(512)
    param.grad = torch.ones(512)
    optimizer = FusedAdamW([param])
    optimizer.step()
    assert state_bytes(optimizer) == 2 * 2 * 512 + 2 * 2 + 4


def test_adamw_gives_a_wrong_optimizer_no_row(monkeypatch, capsys):
    right = FusedAdamW.step

    def step(self):
        for group in self.param_groups:
            group["lr"] *= 1.02
        right(self)

    monkeypatch.setattr(FusedAdamW, "step", step)
    with pytest.raises(SystemExit, match="no figure for: clipfast, fp32 weights, fp32 statistics"):
        adamw.main([*QUICK, "fp32", "torch-fused"])
    told = capsys.readouterr().out
    assert "clipfast, fp32 weights, fp32 statistics: wrong, so not timed" in told
    assert "torch AdamW fused" in told


def test_check_wants_the_references_bits_and_unbiased_weights(monkeypatch):
    options = {"seed": 1}
    monkeypatch.setattr(
        FusedAdamW.__init__, "__kwdefaults__", {**FusedAdamW.__init__.__kwdefaults__, **options}
    )
    with pytest.raises(AssertionError, match="bit for bit"):
        adamw_check.check(CONTENDERS["fp16"], CPU)
    options = {"seed": 0, "rounding": "nearest"}
    monkeypatch.setattr(
        FusedAdamW.__init__, "__kwdefaults__", {**FusedAdamW.__init__.__kwdefaults__, **options}
    )
    with pytest.raises(AssertionError, match="bit for bit"):
        adamw_check.check(CONTENDERS["stochastic"], CPU)


def test_a_peer_that_is_not_there_is_told(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "apex", None)
    with pytest.raises(NotMeasured, match="apex"):
        make(CONTENDERS["apex"], [torch.zeros(3)])
    adamw.main([*QUICK, "torch-fused", "apex"])
    assert "apex FusedAdam: not measured: runs on cuda" in capsys.readouterr().out


def test_models_lists_are_theirs():
    shapes = adamw_problem.shapes_of("ViT-L/14", 0)
    assert sum(shape.numel() for shape in shapes) == 427_616_513
    params = adamw_problem.Problem(shapes[:3], CPU).parameters(torch.bfloat16)
    assert [param.shape for param in params] == shapes[:3]
    assert all(param.grad.ne(0).float().mean() > 0.99 for param in params)


def test_plot_has_a_picture_per_list(tmp_path):
    row = {
        "name": "clipfast", "device": "cpu", "elements": 10**6, "median_ms": 2.0, "p20_ms": 1.5,
        "p80_ms": 2.5, "floor_ms": 1.0, "of_copy": 0.5, "times_torch_fused": None,
    }  # fmt: skip
    one = adamw_report.plot([{**row, "list": "flat"}], tmp_path / "one.png").stat().st_size
    rows = [{**row, "list": name} for name in adamw_problem.LISTS]
    assert adamw_report.plot(rows, tmp_path / "three.png").stat().st_size > 1.5 * one
