"""The loss benchmark times only right results, and sets them in ratio to what it says."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

import clipfast.loss
from benchmarks import loss_throughput
from benchmarks.parts.common.rows import RESULTS, read_file
from benchmarks.parts.loss import floor as loss_floor
from benchmarks.parts.loss import peers as loss_peers
from benchmarks.parts.loss import problem as loss_problem
from benchmarks.parts.loss.problem import Case, compute_truth, make_features, measure_errors
from tests.needs import need

TINY = ["--device", "cpu", "--batch-sizes", "64", "--dims", "16", "--runs", "1"]
CASE = Case(64, 16, torch.float32, torch.device("cpu"))


def run(tmp_path, *options: str) -> list[dict]:
    path = tmp_path / "out" / "rows.json"
    loss_throughput.main([*TINY, "--json", str(path), *options])
    return read_file(path)


def require_open_clip() -> None:
    # Found, not imported: the benchmark loads its loss without the package's other needs.
    need("open_clip")


def paper_loss(images, texts, log_scale):
    """Figure 3 of the paper."""
    logits = log_scale.exp() * F.normalize(images, dim=1) @ F.normalize(texts, dim=1).T
    target = torch.arange(len(logits))
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def test_loss_throughput_times_ours_and_peers(tmp_path, capsys):
    require_open_clip()
    options = ["--dtypes", "float32", "bfloat16", "--peers", "openclip", "chunked", "inf-cl"]
    rows = run(tmp_path, *options)
    told = capsys.readouterr().out
    assert "Inf-CL" in told
    assert "not measured: its kernels need a GPU" in told
    for dtype in ("float32", "bfloat16"):
        chosen = {row["name"]: row for row in rows if row["dtype"] == dtype}
        names = [name.split(" 3.")[0] for name in chosen]
        assert names == [
            *("floor 6BGD", "floor 8BGD", "clipfast, recompute", "clipfast, keep"),
            *("OpenCLIP", "chunked torch"),
        ]
        for name, row in chosen.items():
            assert (row["batch"], row["dim"], row["ranks"], row["runs"]) == (64, 16, 1, 1)
            assert row["environment"]["versions"]["torch"] == torch.__version__
            if not name.startswith("floor"):
                errors = [value for key, value in row.items() if key.startswith("error_")]
                assert len(errors) == 4
                assert max(errors) < (1e-3 if dtype == "float32" else 0.1)


def test_loss_throughput_ratios_are_those_of_the_times(tmp_path):
    rows = {row["name"]: row for row in run(tmp_path, "--dtypes", "float32", "--peers", "chunked")}
    ours = ("clipfast, recompute", "clipfast, keep")
    for name, flop_bgd in zip(ours, (8, 6), strict=True):
        row, floor = rows[name], rows[f"floor {flop_bgd}BGD"]
        assert row["ratio_to_floor"] == pytest.approx(row["median_ms"] / floor["median_ms"])
        flop = flop_bgd * 64 * 64 * 16
        assert floor["tflops"] * 1e12 == pytest.approx(flop / (floor["median_ms"] / 1e3))
        # One run: the median of ratios is the ratio of medians.
        ratio = rows["chunked torch"]["median_ms"] / row["median_ms"]
        assert rows["chunked torch"][f"ratio_to_{name}"] == pytest.approx(ratio)
        assert f"ratio_to_{name}" not in row
    assert "ratio_to_floor" not in rows["chunked torch"]


def test_loss_throughput_scales_the_floor_of_a_strip_to_all_rows(monkeypatch):
    # 16 of 64 rows of P fit a quarter of what is free.
    monkeypatch.setattr(loss_floor, "free_bytes", lambda device: 4 * 16 * 64 * 4)
    monkeypatch.setattr(loss_floor.harness, "_cpu_time_once", lambda fn: (fn(), (2e-3, 2e-3))[1])
    rows = loss_floor.measure_floors(CASE, make_features(CASE), 2, 0, lambda: None, {})
    for row, flop_bgd in zip(rows, (6, 8), strict=True):
        assert row["measured_rows"] == 16
        assert row["median_ms"] == pytest.approx(4 * 2.0)
        assert row["tflops"] == pytest.approx(flop_bgd * 64 * 64 * 16 / 8e-3 / 1e12)


@pytest.mark.parametrize("wrong", ["loss", "images", "texts", "scale"])
def test_loss_throughput_gives_a_wrong_loss_no_row(monkeypatch, tmp_path, capsys, wrong):
    right = clipfast.loss.clip_loss

    def wrong_loss(images, texts, logit_scale, **options):
        if wrong == "loss":
            return right(images, texts, logit_scale, **options) * 1.001
        # The value is right and one gradient is off by a thousandth.
        inputs = {"images": images, "texts": texts, "scale": logit_scale}
        inputs[wrong] = 1.001 * inputs[wrong] - 0.001 * inputs[wrong].detach()
        return right(*inputs.values(), **options)

    monkeypatch.setattr(clipfast.loss, "clip_loss", wrong_loss)
    with pytest.raises(SystemExit, match="clipfast, recompute at G 64, clipfast, keep at G 64"):
        run(tmp_path, "--dtypes", "float32", "--peers", "chunked")
    assert "clipfast, keep: wrong, so not timed: error_" in capsys.readouterr().out
    rows = read_file(tmp_path / "out" / "rows.json")
    assert [row["name"] for row in rows] == ["floor 6BGD", "floor 8BGD", "chunked torch"]


def test_loss_throughput_lists_a_peer_that_fails(monkeypatch, tmp_path, capsys):
    def broken(case):
        raise RuntimeError("no such kernel\nand a long trace")

    monkeypatch.setattr(loss_peers, "_chunked_torch", broken)
    rows = run(tmp_path, "--dtypes", "float32", "--peers", "chunked", "--keep", "keep")
    assert "chunked torch: not measured: RuntimeError: no such kernel\n" in capsys.readouterr().out
    assert [row["name"] for row in rows][2:] == ["clipfast, keep"]


def test_loss_throughput_leaves_the_default_results_alone(tmp_path, capsys):
    before = {path: path.read_bytes() for path in RESULTS.iterdir()}
    loss_throughput.main([*TINY, "--dtypes", "float32", "--peers", "--keep", "keep"])
    assert {path: path.read_bytes() for path in RESULTS.iterdir()} == before
    assert "rows: not written" in capsys.readouterr().out


def test_loss_throughput_draws_its_rows(tmp_path):
    need("matplotlib")
    picture = tmp_path / "loss.png"
    run(tmp_path, "--dtypes", "float32", "--peers", "chunked", "--plot", str(picture))
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_loss_throughput_on_two_ranks_compares_with_one_process(tmp_path, capsys):
    require_open_clip()
    options = ["--dtypes", "float32", "--ranks", "2", "--peers", "openclip", "chunked"]
    rows = {row["name"].split(" 3.")[0]: row for row in run(tmp_path, *options)}
    assert "chunked torch: not measured: written for one process" in capsys.readouterr().out
    assert list(rows)[2:] == ["clipfast, recompute", "clipfast, keep", "OpenCLIP"]
    assert all(row["ranks"] == 2 for row in rows.values())
    keep, floor = rows["clipfast, keep"], rows["floor 6BGD"]
    assert keep["ratio_to_floor"] == pytest.approx(keep["median_ms"] / floor["median_ms"])
    assert floor["measured_rows"] == 32


@pytest.mark.parametrize("sampled_above", [8192, 500])
def test_compute_truth_equals_autograd_in_fp64(monkeypatch, sampled_above):
    monkeypatch.setattr(loss_problem, "SAMPLED_ABOVE", sampled_above)
    case = replace(CASE, batch=600, dim=64)
    features = make_features(case)
    truth = compute_truth(features)
    leaves = [x.detach().double().requires_grad_() for x in features.leaves]
    loss = paper_loss(*leaves)
    images, texts, scale = torch.autograd.grad(loss, leaves)
    assert 0.3 < loss.item() < 3
    assert len(truth.rows) == (600 if sampled_above > 600 else loss_problem.SAMPLE)
    assert len(truth.rows.unique()) == len(truth.rows)
    torch.testing.assert_close(truth.loss, loss.detach(), rtol=1e-12, atol=0)
    torch.testing.assert_close(truth.image_grad, images[truth.rows], rtol=1e-9, atol=1e-15)
    torch.testing.assert_close(truth.text_grad, texts[truth.rows], rtol=1e-9, atol=1e-15)
    torch.testing.assert_close(truth.scale_grad, scale, rtol=1e-9, atol=1e-12)


def test_make_features_are_the_same_pairs_on_any_number_of_ranks():
    whole = make_features(CASE)
    shards = [make_features(replace(CASE, rank=rank, world_size=4)) for rank in range(4)]
    for name in ("images", "texts"):
        assert torch.equal(torch.cat([getattr(x, name) for x in shards]), getattr(whole, name))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_measure_errors_undoes_the_loss_scale(dtype):
    case = replace(CASE, dtype=dtype)
    features = make_features(case)

    def exact(images, texts, log_scale):
        return paper_loss(images.double(), texts.double(), log_scale.double())

    errors = measure_errors(exact, features, compute_truth(features), case)
    # What is left is the rounding of gradients to their dtype.
    assert max(errors.values()) < {torch.float32: 1e-6}.get(dtype, 4e-3)
    assert errors["error_loss"] < 1e-12


def test_case_needs_a_batch_that_divides_among_ranks():
    with pytest.raises(ValueError, match="64 pairs do not divide among 3 ranks"):
        replace(CASE, world_size=3)
