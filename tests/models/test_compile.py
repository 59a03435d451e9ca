"""Blocks compiled one by one: same results, few graphs, every mode of recomputation."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters

from clipfast.models import CLIP, frozen_statistics
from clipfast.models.compile import compile_blocks
from tests.models.helpers import assert_near, random_images, small_model

ROWS = 5


@pytest.fixture(autouse=True)
def fresh_graphs():
    """No graph of another test, and the counters at 0."""
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def captions(seed: int) -> Tensor:
    """[ROWS, 77], another mix of lengths for each seed."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(1, 400, (ROWS, 77), generator=generator)
    for row, length in enumerate(torch.randint(2, 78, (ROWS,), generator=generator).tolist()):
        tokens[row, length - 1] = 499
        tokens[row, length:] = 0
    return tokens


def step(model: CLIP, seed: int = 0) -> tuple[Tensor, Tensor]:
    model.zero_grad()
    u, v, scale = model(random_images(ROWS, 64).to(model.logit_scale.dtype), captions(seed))
    (scale * (u * v).sum()).sum().backward()
    return u.detach(), v.detach()


def assert_equal_training(model: CLIP, plain: CLIP, seeds: range) -> None:
    for seed in seeds:
        for ours, expected in zip(step(model, seed), step(plain, seed), strict=True):
            assert_near(ours, expected, 1e-12)
    for ours, expected in zip(model.parameters(), plain.parameters(), strict=True):
        assert_near(ours.grad, expected.grad, 1e-10)
    for ours, expected in zip(model.buffers(), plain.buffers(), strict=True):
        assert_near(ours.double(), expected.double(), 1e-12)


@pytest.mark.parametrize(
    ("name", "mode"),
    [
        *(("RN-tiny", "full"), ("ViT-tiny", "none")),
        pytest.param("RN-tiny", "none", marks=pytest.mark.thorough),
        pytest.param("ViT-tiny", "full", marks=pytest.mark.thorough),
    ],
)
def test_compile_blocks_trains_as_eager_blocks_do(name: str, mode: str) -> None:
    model = compile_blocks(small_model(name, recompute=mode).double(), backend="aot_eager")
    assert_equal_training(model, small_model(name).double(), range(2))
    assert counters["stats"]["unique_graphs"] > 0


def test_compile_blocks_traces_no_graph_again_for_other_captions_or_layers() -> None:
    def graphs(model: CLIP, seeds: range) -> int:
        for seed in seeds:
            step(model, seed)
        return counters["stats"]["unique_graphs"]

    shallow = compile_blocks(small_model("ViT-tiny", vision_layers=2), backend="aot_eager")
    # The first batch fixes the rows behind a break in the graph, the second one opens them.
    twice = graphs(shallow, range(2))
    assert graphs(shallow, range(2, 12)) == twice
    deep = compile_blocks(
        small_model("ViT-tiny", vision_layers=4, text_layers=4), backend="aot_eager"
    )
    assert graphs(deep, range(3)) == twice


def test_compile_blocks_rest_in_eval_mode() -> None:
    model = compile_blocks(small_model("RN-tiny", text_layers=1), backend="aot_eager").eval()
    with torch.no_grad():
        model(random_images(2, 64), captions(0))
    assert counters["stats"]["unique_graphs"] == 0


def test_compile_blocks_with_held_statistics_repeats_and_records_nothing() -> None:
    model = compile_blocks(small_model("RN-tiny", text_layers=1), backend="aot_eager")
    images = random_images(3, 64)
    with torch.no_grad():
        features = model.encode_image(images)
    statistics = [buffer.clone() for buffer in model.buffers()]
    with frozen_statistics():
        again = model.encode_image(images)
    again.sum().backward()
    assert_near(again.detach(), features, 1e-6)
    for buffer, before in zip(model.buffers(), statistics, strict=True):
        assert torch.equal(buffer, before)


def test_compile_blocks_keeps_names_copies_and_pickles() -> None:
    plain = small_model("ViT-tiny")
    model = compile_blocks(small_model("ViT-tiny"), backend="aot_eager")
    assert list(model.state_dict()) == list(plain.state_dict())
    tokens = captions(0)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert_near(twin.encode_text(tokens).detach(), plain.encode_text(tokens).detach(), 1e-5)


def test_compile_blocks_refuses_a_selective_model() -> None:
    with pytest.raises(ValueError, match="keeps no less in compiled blocks"):
        compile_blocks(small_model("ViT-tiny", recompute="selective"))


def test_compile_blocks_refuses_a_model_without_blocks() -> None:
    with pytest.raises(ValueError, match=r"Linear has no residual block.*create_model"):
        compile_blocks(nn.Linear(2, 2))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "mode"),
    [
        ("RN-tiny", "full"),
        # Code of a ViT's blocks also trains in tests/engine/test_training.py.
        pytest.param("ViT-tiny", "none", marks=pytest.mark.thorough),
    ],
)
def test_compile_blocks_generates_code_that_trains_as_eager_blocks_do(name: str, mode: str) -> None:
    layers = {"text_layers": 1, "vision_layers": (1, 1, 1, 1) if name == "RN-tiny" else 2}
    model = small_model(name, recompute=mode, **layers).double()
    # Of the ResNet the first block that strides: each is another half minute of generating code.
    compile_blocks(model.visual.layer2 if name == "RN-tiny" else model)
    assert_equal_training(model, small_model(name, **layers).double(), range(2))


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["RN-tiny", "ViT-tiny"])
@pytest.mark.parametrize("mode", ["none", "full"])
def test_compile_blocks_on_a_gpu_trains_near_eager_blocks_in_few_graphs(
    name: str, mode: str
) -> None:
    plain = small_model(name).cuda().bfloat16()
    model = compile_blocks(small_model(name, recompute=mode).cuda().bfloat16())
    truth = small_model(name).double()

    def gradient(trained: CLIP, seed: int) -> Tensor:
        trained.zero_grad()
        weight = trained.logit_scale
        images = random_images(ROWS, 64).to(weight.device, weight.dtype)
        u, v, scale = trained(images, captions(seed).to(weight.device))
        (scale * (u.double() * v.double()).sum()).sum().backward()
        rows = [p.grad.double().flatten().cpu() for p in trained.parameters()]
        return torch.cat(rows)

    for seed in range(8):
        expected = gradient(truth, seed)
        errors = [(gradient(m, seed) - expected).norm() for m in (model, plain)]
        assert errors[0] <= 1.2 * errors[1] + 0.01 * expected.norm()
        if seed == 2:
            graphs = counters["stats"]["unique_graphs"]
    assert counters["stats"]["unique_graphs"] == graphs
