"""A small version of ``benchmarks/adamw_proof.py``: ours pass, and every control fails."""

from __future__ import annotations

import math

import pytest
import torch

from benchmarks.parts.adamw import demo, demo_report, error, gradients, rounding, weights
from benchmarks.parts.adamw.followers import CONTENDERS
from clipfast.engine.builders import Builders
from clipfast.models import create_model
from tests.engine.plans import PAPER, plan

CONTROLS = {contender.name for contender in CONTENDERS if contender.is_control}
ELEMENTS = 1 << 12


def error_rows(kind: str, beta2: float, steps: int) -> list[dict]:
    stream = ([grad] for grad in gradients.gradients(kind, ELEMENTS))
    return error.measure(kind, stream, steps, beta2)


@pytest.mark.parametrize(
    ("kind", "beta2", "failing"),
    [
        ("narrow", 0.999, {"fp16, to nearest", "bf16 v, to nearest"}),
        ("8 decades", 0.98, {"fp16, one scale a tensor"}),
        ("sparse", 0.999, CONTROLS),
    ],
)
def test_updates_stay_near_float64s_and_controls_do_not(kind, beta2, failing):
    rows = error_rows(kind, beta2, 600)
    assert error.complaints(rows, controls_fail=False) == []
    assert failing <= {row["name"] for row in rows if row["failed"]} <= CONTROLS


def test_error_measure_complains_of_ours_beyond_its_limit_and_of_controls_within():
    row = {"name": "a", "gradients": "narrow", "beta2": 0.98, "is_control": False, "failed": []}
    assert error.complaints([row]) == []
    assert len(error.complaints([{**row, "failed": ["update"]}])) == 1
    assert len(error.complaints([{**row, "is_control": True}])) == 1
    limits = {"limit_update": 0.01, "limit_bias": 0.002}
    errors = {"update_error": 0.001, "update_error_end": math.nan, "v_bias": -0.01}
    assert error.failures({**limits, **errors}) == ["update", "bias"]


def test_straddling_rows_keep_their_updates():
    rows = error_rows("straddling", 0.98, 600)
    assert rows[0]["update_error"] < 0.01
    assert error.complaints(rows, controls_fail=False) == []


def test_late_weights_follow_and_to_nearest_they_stall():
    rows, curves = weights.late_phase(ELEMENTS * 4, 100)
    assert weights.complaints(rows) == []
    assert [row["progress"] < 0.5 for row in rows] == [row["is_control"] for row in rows]
    assert set(curves) == {row["name"] for row in rows}


def test_replayed_gradients_move_stochastic_weights_like_float64s(tmp_path):
    generator = torch.Generator().manual_seed(1)
    starts = [0.05 * torch.randn(64, 96, generator=generator), torch.ones(40)]
    sizes, steps = sum(start.numel() for start in starts), 30
    # With a mean, so that weights move on and not to and fro.
    grads = 1e-3 * (torch.randn(sizes, generator=generator) + torch.randn(steps, sizes))
    file = tmp_path / "gradients.f32"
    file.write_bytes(grads.numpy().tobytes())
    trace = gradients.Trace(["a", "b"], starts, file, steps)
    assert torch.equal(torch.cat([g.flatten() for g in next(trace.gradients())]), grads[0])
    rows = weights.replay(trace, lr=1e-6, decay=0.2, beta2=0.98, cycles=2)
    assert weights.complaints(rows) == []
    assert rows[0]["relative_l2"] < 0.05


def test_rounding_is_unbiased_and_to_nearest_is_not():
    rows = rounding.measure(10_000)
    assert [row for row in rows if not row["passed"]] == []
    kinds = {row["kind"] for row in rows if row["name"] == "fp16 sqrt(v)"}
    assert kinds == {"normal", "end of a binade", "subnormal", "under the smallest"}
    assert {row["fraction"] for row in rows if row["name"] == "fp16 m"} == {*rounding.FRACTIONS}
    nearest = rounding.measure(10_000, rounding="nearest")
    biased = {row["name"] for row in rounding.summary(nearest) if not row["passed"]}
    assert biased == {form.name for form in rounding.FORMATS}


def demo_row(name: str, seed: int, offset: float) -> dict:
    losses = [5.0 - step / 100 + offset + 0.01 * seed for step in range(8)]
    recalls = {
        f"eval/sample/{artist}/{way}/R@1": 0.5 + 0.1 * offset + 0.01 * seed
        for artist in ("noto", "twemoji")
        for way in ("image_to_text", "text_to_image")
    }
    metrics = [{"step": i + 1, "loss": loss} for i, loss in enumerate(losses)]
    row = demo.figures([*metrics, {"step": 4, **dict.fromkeys(recalls, 0.0)}, recalls])
    return {"name": name, "seed": seed, "seconds": 1.0, **row, "device": "cpu", "checked": True}


def test_demo_goes_on_where_it_was_interrupted_and_compares_pairs(monkeypatch, tmp_path):
    started = []

    def train(name: str, seed: int, max_steps: int | None) -> dict:
        if len(started) == 4:
            raise KeyboardInterrupt
        started.append((name, seed))
        # The pairs of "paper" differ by chance, those of "nearest" for good.
        offset = {"fp32": 0.0, "paper": 0.005 * (-1) ** seed, "nearest": 0.3 + 0.001 * seed}[name]
        return demo_row(name, seed, offset)

    monkeypatch.setattr(demo, "train", train)
    with pytest.raises(KeyboardInterrupt):
        demo.run(range(4), list(demo.RUNS), directory=tmp_path)
    first, started[:] = list(started), []
    rows = []
    while len(rows) < 12:
        started.clear()
        try:
            rows = demo.run(range(4), list(demo.RUNS), directory=tmp_path)
        except KeyboardInterrupt:
            assert not set(first) & set(started)
    assert len({(row["name"], row["seed"]) for row in rows}) == 12
    assert demo_report.complaints(rows) == []
    found = demo_report.compare(rows, "nearest", "final_loss")
    assert found["difference"] == pytest.approx(0.3015)
    assert found["error"] == pytest.approx(0.001 * math.sqrt(5 / 3) / 2, rel=1e-6)
    assert not found["is_equivalent"]
    table = demo_report.table(rows)
    assert "DIFFERS" in table
    assert "within seed variance" in table
    assert demo_report.plot(rows, tmp_path / "demo.png").stat().st_size > 10_000
    same = [row for row in rows if row["name"] == "fp32"]
    same += [{**row, "name": "nearest"} for row in same]
    assert demo_report.complaints(same) == ["nearest: a control, and it trains like fp32"]


def test_demo_to_nearest_trains_with_an_optimizer_that_rounds_to_nearest(monkeypatch):
    runs = []
    monkeypatch.setattr("clipfast.engine.main", lambda config, builders: runs.append(builders))
    demo.train_to_nearest()
    model = create_model("ViT-tiny", vocab_size=500)
    made = plan(PAPER)
    assert runs[0].optimizer(made, model).rounding == "nearest"
    assert Builders().optimizer(made, model).rounding == "stochastic"
    assert runs[0].loader is Builders().loader
