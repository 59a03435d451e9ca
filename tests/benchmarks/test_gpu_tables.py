"""The tables of GPUs are made from rows: what is there stands there, and what is not is said."""

from __future__ import annotations

import json

import pytest

from benchmarks.parts.common.schema import to_record
from benchmarks.parts.tables import gpu, loss, towers
from benchmarks.parts.tables.runs import Run


def row(name, median, *, card="NVIDIA H100", date="2026-12-01", **fields):
    stamp = {"commit": "1", "date": date, "device": {"gpus": [{"name": card}]}}
    made = {"subject": "loss_throughput", "name": name, "device": "cuda", "median_ms": median}
    made |= {"batch": 32768, "dim": 1024, "ranks": 1, "dtype": "bfloat16", "environment": stamp}
    return {**made, "peak_extra_bytes": 3 << 20, **fields}


@pytest.fixture
def results(monkeypatch, tmp_path):
    for module in ("tables.gpu", "tables.runs", "common.rows"):
        monkeypatch.setattr(f"benchmarks.parts.{module}.RESULTS", tmp_path)
    gpu.prediction_lines.cache_clear()
    yield tmp_path
    gpu.prediction_lines.cache_clear()


def write(folder, rows) -> None:
    lines = "".join(json.dumps(to_record(one)) + "\n" for one in rows)
    (folder / f"{rows[0]['subject']}.jsonl").write_text(lines)


def test_gpu_tables_say_what_is_missing(results):
    table = gpu.gpu_missing()
    assert {line.count("not measured") for line in table.splitlines()[2:]} == {2}
    ours = [row(f"clipfast {impl}, {form}", 9.0, ratio_to_floor=1.5)
            for impl in ("triton", "cuda") for form in ("keep", "recompute")]  # fmt: skip
    write(results, [*ours[:3], row("memeff 0.3.1", 30.0)])
    gpu.prediction_lines.cache_clear()
    table = gpu.gpu_missing()
    assert "| `loss` | the loss at 32,768 pairs, bf16 | 3 of 4 rows | not measured |" in table
    assert "Inf-CL, memeff and siglip-kernel | 1 of 3 rows | not measured |" in table
    write(results, ours)
    gpu.prediction_lines.cache_clear()
    assert "bf16 | measured | not measured |" in gpu.gpu_missing()
    assert "H100 9.00 |" in gpu.predicted()


def test_gpu_floors_set_openclip_of_the_same_run_beside_ours(results):
    rows = [
        row("clipfast triton, keep", 12.0, ratio_to_floor=1.5),
        row("OpenCLIP 3.3.0", 40.0),
        row("OpenCLIP 3.3.0, torch.compile", 20.0),
        row("clipfast triton, keep", 9.0, ratio_to_floor=1.5, card="NVIDIA H200"),
    ]
    write(results, rows)
    lines = gpu.gpu_floors().splitlines()[2:]
    assert {line.split(" | ", 3)[3] for line in lines} == {
        "H100 | 12.0 | 8.00 | 1.50 | 40.0 |",
        "H200 | 9.00 | 6.00 | 1.50 | not measured |",
    }


def test_rivals_stand_beside_ours_of_their_run_and_not_in_the_losss_table(results):
    ours = {"ratio_to_floor": 1.5}
    rows = [
        row("clipfast triton, keep", 10.0, **ours),
        row("OpenCLIP 3.3.0", 40.0),
        row("clipfast triton, keep", 11.0, date="2026-12-02", **ours),
        row("Inf-CL 1.2.1", 55.0, date="2026-12-02"),
    ]
    write(results, rows)
    assert "| Inf-CL 1.2.1 | H100 | 32,768 bf16, D 1,024 | 55.0 | 3 | 11.0 | 5.00x |" in (
        loss.loss_rivals()
    )
    assert loss.loss_rivals().count("not measured") == 2 * 4
    lines = loss.loss().splitlines()[2:]
    assert len(lines) == 1
    assert "| 10.0 | 1.50 | 4.00x |" in lines[0]


def test_steps_beside_two_versions_name_them(monkeypatch):
    def run(version):
        made = {"model": "ViT-B/32", "batch": 512, "precision": "amp_bf16", "items_per_s": 1.0}
        made |= {"subject": "step_throughput", "peak_bytes": 1, "state_bytes": 1}
        names = {"clipfast": "clipfast", "openclip": f"OpenCLIP {version}"}
        return Run(tuple(row(name, 1.0, contender=key, **made) for key, name in names.items()))

    monkeypatch.setattr(towers, "read_runs", lambda subject: [run("3.3.0"), run("4.2.0.dev0")])
    told = towers.step()
    assert "faster than OpenCLIP |" in told
    assert "512 pairs, bf16, beside 3.3.0 |" in told
    assert "512 pairs, bf16, beside 4.2.0.dev0 |" in told
    monkeypatch.setattr(towers, "read_runs", lambda subject: [run("3.3.0")])
    assert "beside" not in towers.step()
