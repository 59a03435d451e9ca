"""The step's benchmark times only right steps, from equal weights, and its figures agree."""

from __future__ import annotations

from argparse import Namespace

import pytest
import torch

import clipfast
from benchmarks import step_throughput
from benchmarks.parts.common import peers
from benchmarks.parts.common import rows as files
from benchmarks.parts.common.harness import CheckFailed
from benchmarks.parts.common.rows import read_file
from benchmarks.parts.common.text import digits
from benchmarks.parts.step import check as step_check
from benchmarks.parts.step import contenders as step_contenders
from benchmarks.parts.step import flop as step_flop
from benchmarks.parts.step import measure as step_measure
from benchmarks.parts.step import report as step_report
from benchmarks.parts.step.contenders import Case, Field, share_parameters
from clipfast.models import num_parameters
from tests.peers import import_open_clip

TINY = ["--device", "cpu", "--models", "RN-tiny", "--batch-sizes", "4", "--runs", "1"]
CASE = Case("RN-tiny", 4, "fp32", torch.device("cpu"))


@pytest.fixture(autouse=True)
def open_clip(monkeypatch):
    # The ceiling's value does not matter here, only what is made of it.
    monkeypatch.setitem(step_measure.GEMM_SIZES, "cpu", (128,))
    return import_open_clip()


def run(tmp_path, *options: str) -> list[dict]:
    path = tmp_path / "out" / "rows.json"
    step_throughput.main([*TINY, "--json", str(path), *options])
    return read_file(path)


# A wrong gradient is looked for in fp32, below.
@pytest.mark.parametrize(
    "precisions",
    [["amp_bf16"], pytest.param(["fp32", "amp_bf16"], marks=pytest.mark.thorough)],
    ids=len,
)
def test_step_throughput_times_ours_and_open_clip(tmp_path, capsys, precisions):
    picture = tmp_path / "plot.png"
    keys = ["clipfast", "patched", "openclip", "openclip-checkpoint"]
    options = ["--contenders", *keys, "--precisions", *precisions]
    rows = run(tmp_path, "--plot", str(picture), *options)
    told = capsys.readouterr().out
    assert picture.stat().st_size > 1000
    assert [row["contender"] for row in rows] == len(precisions) * keys
    for row in rows:
        assert (row["model"], row["batch"], row["runs"]) == ("RN-tiny", 4, 1)
        assert row["peak_bytes"] == row["state_bytes"] + row["peak_extra_bytes"]
        rate = row["model_flop"] / (row["median_ms"] / 1e3)
        assert row["mfu"] == pytest.approx(rate / row["gemm_flop_per_s"])
        # Parameters, the two means of their gradients, and little on top.
        with torch.device("meta"):
            count = num_parameters(clipfast.create_model("RN-tiny"))
        assert 3 <= row["state_bytes"] / (4 * count) < 3.01
        assert set(row["parts_ms"]) == {
            *("image_forward", "image_backward", "text_forward", "text_backward"),
            *("loss", "optimizer"),
        }
        assert min(row["parts_ms"].values()) > 0
        assert digits(row["median_ms"]) in told
    by_key = {(row["precision"], row["contender"]): row for row in rows}
    for precision in precisions:
        ours, theirs = (by_key[precision, key] for key in ("clipfast", "openclip"))
        ratio = theirs["median_ms"] / ours["median_ms"]
        assert theirs["ratio_to_clipfast"] == pytest.approx(ratio)
        assert ours["done_flop"] < 0.7 * theirs["done_flop"]
        assert theirs["done_flop"] == pytest.approx(theirs["model_flop"], rel=0.03)
        recomputed = by_key[precision, "openclip-checkpoint"]["done_flop"]
        assert recomputed > 1.05 * theirs["done_flop"]


def test_step_throughput_gives_a_wrong_gradient_no_row(monkeypatch, tmp_path, capsys):
    right = clipfast.clip_loss

    def wrong_loss(images, texts, scale):
        # The value is right, the gradient of the texts off by a hundredth.
        return right(images, 1.01 * texts - 0.01 * texts.detach(), scale, normalize=True)

    monkeypatch.setattr(clipfast, "clip_loss", wrong_loss, raising=False)
    options = ["--precisions", "fp32", "--contenders", "clipfast", "openclip"]
    with pytest.raises(SystemExit, match="clipfast has no figure for: clipfast on RN-tiny"):
        run(tmp_path, *options)
    assert "clipfast: wrong, so not timed: error_text_grad" in capsys.readouterr().out
    rows = read_file(tmp_path / "out" / "rows.json")
    assert [row["contender"] for row in rows] == ["openclip"]


def test_step_throughput_gives_a_missing_gradient_no_row():
    field = Field(CASE)
    truth = step_check.compute_truth(field)
    field.ours.logit_scale.requires_grad_(False)
    with pytest.raises(CheckFailed, match="1 gradients differ: logit_scale"):
        step_check.check(field.contender("clipfast"), truth)


def test_step_throughput_contenders_start_equal_and_share_what_they_may():
    field = Field(CASE)
    ours, selective, theirs, patched = (
        field.contender(key) for key in ("clipfast", "clipfast-selective", "openclip", "patched")
    )
    state = theirs.model.state_dict()
    for name, value in ours.model.state_dict().items():
        assert torch.equal(value, state[name].reshape(value.shape)), name
    for one, other in ((ours, selective), (theirs, patched)):
        pairs = zip(one.model.parameters(), other.model.parameters(), strict=True)
        assert all(a is b for a, b in pairs)
        assert one.optimizer is other.optimizer
        assert one.model is not other.model
    assert type(theirs.model) is import_open_clip().model.CLIP
    assert not {id(p) for p in ours.model.parameters()} & {id(p) for p in theirs.model.parameters()}


def test_step_throughput_leaves_open_clips_loss_as_it_is():
    before = import_open_clip().loss.ClipLoss.forward
    Field(CASE).contender("patched").step()
    assert import_open_clip().loss.ClipLoss.forward is before


def test_step_throughput_saves_cases_beside_others(monkeypatch, tmp_path):
    monkeypatch.setattr(files, "RESULTS", tmp_path)
    row = {"name": "a", "checked": True, "device": "cpu", "model": "RN50", "batch": 4}
    row |= {"precision": "fp32", "captions": "web"}
    gpu = {**row, "device": "cuda:0"}

    def save(rows, **options):
        given = Namespace(json=None, plot=None, **options)
        file = files.RowFile("steps", given, step_report.case_of)
        file.add(rows)
        file.finish(lambda rows, path: path)
        found = files.read_file(tmp_path / "steps.jsonl")
        return [(row["device"], row["model"], row["name"]) for row in found]

    save([row, {**row, "model": "RN101"}], is_default=True, save=False)
    save([gpu], is_default=False, save=True)
    assert save([{**row, "name": "b"}], is_default=False, save=True) == [
        ("cpu", "RN101", "a"),
        ("cuda:0", "RN50", "a"),
        ("cpu", "RN50", "b"),
    ]
    assert save([row], is_default=True, save=False) == [
        ("cuda:0", "RN50", "a"),
        ("cpu", "RN50", "a"),
    ]


def test_step_throughput_counts_the_plain_models_flop():
    # ViT-tiny, by hand: 24 C^2 FLOP a token, block and direction; 4 L C for scores and context.
    case = Case("ViT-tiny", 6, "fp32", torch.device("cpu"))
    tokens = 65 * 7 * (24 * 256**2 + 4 * 65 * 256) + 77 * 4 * (24 * 192**2 + 4 * 77 * 192)
    ends = 2 * 64 * 256 * 3 * 8**2 + 2 * 256**2 + 2 * 192 * 256
    flop = 6 * 3 * (tokens + ends) + 6 * 6**2 * 256
    assert step_flop.model_flop(case) == pytest.approx(flop, rel=0.02)


def test_share_parameters_copies_modules_only():
    model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3))
    twin = share_parameters(model)
    assert twin[0] is not model[0]
    for name, value in model.state_dict(keep_vars=True).items():
        assert twin.state_dict(keep_vars=True)[name] is value


def test_step_throughput_wants_a_batch_size_for_each_model():
    with pytest.raises(SystemExit, match="2 sizes for 1 models"):
        step_throughput.main([*TINY, "--batch-sizes", "4", "8"])


def test_peers_multiply_as_the_rows_precision_says():
    backends = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [backend.allow_tf32 for backend in backends]
    try:
        for precision in step_contenders.PRECISIONS:
            peers.set_products(precision)
            assert [b.allow_tf32 for b in backends] == [precision != "fp32"] * 2
            with step_check.exact_products():
                assert not any(b.allow_tf32 for b in backends)
    finally:
        for backend, value in zip(backends, before, strict=True):
            backend.allow_tf32 = value


@pytest.mark.parametrize("name", ["RN50", "ViT-L/14@336px", "RN-tiny"])
def test_peers_describe_our_models_to_open_clip(name):
    config = peers.open_clip_config(name, text_layers=3, image_size=64)
    assert config["quick_gelu"]
    assert config["text_cfg"]["layers"] == 3
    assert config["vision_cfg"]["image_size"] == 64
