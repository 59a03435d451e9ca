"""``patch_gain.py``: plain and patched OpenCLIP in turns, checked first."""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Iterator

import pytest
import torch

from benchmarks import patch_gain
from benchmarks.parts.common import rows as rows_file
from benchmarks.parts.common.harness import CheckFailed
from benchmarks.parts.common.rows import read_file
from benchmarks.parts.patch import measure
from benchmarks.parts.tables import towers
from benchmarks.parts.tables.runs import Run
from tests.peers import import_open_clip

OPTIONS = Namespace(models=["ViT-tiny", "RN-tiny"], batch_sizes=[4, 4], runs=2, device="cpu")


@pytest.fixture(scope="module")
def rows() -> list[dict]:
    import_open_clip()
    return [row for new in measure.measure_version(OPTIONS) for row in new]


def test_patch_gain_has_a_checked_pair_of_rows_per_case(rows):
    version = import_open_clip().__version__
    assert len(rows) >= 4
    for plain, patched in zip(rows[::2], rows[1::2], strict=True):
        assert plain["name"] == f"OpenCLIP {version}"
        assert patched["name"] == f"OpenCLIP {version}, patch_open_clip"
        assert len(patched["swapped"]) == 2
        assert all(row["checked"] and row["cpu_ms"] > 0 for row in (plain, patched))
        assert plain["ratio_to_patched"] > 0
        assert patched["error_loss"] < 1e-5
    stamp = {"environment": {"date": "2026-01-01", "commit": "abc", "device": {"cpu": "A CPU"}}}
    lines = towers._patch_gain([Run(tuple({**row, **stamp} for row in rows))]).splitlines()
    assert len(lines) == 2 + len(rows) // 2
    assert "ViT-tiny, 4 pairs, fp32" in lines[2]
    assert "77 tokens" in patch_gain.table(rows)


def test_patch_gain_reports_no_figure_of_another_function(monkeypatch):
    import_open_clip()
    loss = measure.clipfast.ClipLoss
    monkeypatch.setattr(
        measure.clipfast, "ClipLoss", lambda: lambda **features: 1.01 * loss()(**features)
    )
    setting = measure.make_settings(4, "cpu")[0]
    with pytest.raises(CheckFailed, match="patched OpenCLIP computes something else"):
        measure.measure_setting("ViT-tiny", setting, OPTIONS)


def test_patch_gain_merges_versions_and_keeps_rows_of_other_devices(monkeypatch, tmp_path, capsys):
    fields = {"model": "ViT-tiny", "setting": "77 tokens", "median_ms": 1.0, "cpu_ms": 1.0}
    fields |= {"ratio_to_patched": 1.0, "cpu_ratio_to_patched": 1.0, "error_loss": 0.0}
    fields |= {"error_image_grad": 0.0, "error_text_grad": 0.0, "device": "cpu", "checked": True}

    def run_version(options: Namespace, checkout: object) -> Iterator[list[dict]]:
        version = "4" if checkout else "3"
        row = {"name": f"OpenCLIP {version}", "open_clip_version": version, "batch": 4, **fields}
        yield [row, {**row, "name": f"OpenCLIP {version}, patch_open_clip"}]

    monkeypatch.setattr(patch_gain, "run_version", run_version)
    monkeypatch.setattr(rows_file, "RESULTS", tmp_path)
    path = tmp_path / "patch_gain.jsonl"
    old = {"subject": "patch_gain", "name": "OpenCLIP 3", "open_clip_version": "3", "batch": 4}
    old |= {"environment": {"commit": "0000000"}, **fields}
    path.write_text(json.dumps({**old, "device": "cuda:0"}) + "\n" + json.dumps(old) + "\n")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    patch_gain.main(["--save", "--checkout", str(tmp_path)])
    found = read_file(path)
    assert found[0]["device"] == "cuda:0"
    assert [row["name"] for row in found[1::2]] == ["OpenCLIP 3", "OpenCLIP 4"]
    assert all("environment" in row for row in found[1:])
    assert "OpenCLIP 4" in capsys.readouterr().out


def test_patch_gain_keeps_the_rows_that_came_before_a_version_failed(monkeypatch, tmp_path, capfd):
    import_open_clip()
    path = tmp_path / "rows.jsonl"
    options = ["--models", "ViT-tiny", "--batch-sizes", "2", "--runs", "1", "--device", "cpu"]
    missing = tmp_path / "no_checkout"
    with pytest.raises(SystemExit, match=f"no figure for: OpenCLIP, {missing}"):
        patch_gain.main([*options, "--checkout", str(missing), "--json", str(path)])
    assert [row["contender"] for row in read_file(path)][:2] == ["plain", "patched"]
    told = capfd.readouterr()
    assert f"{missing}: not measured: its process ended with 1" in told.out
    assert "expected a checkout of OpenCLIP" in told.err
