"""The model as a whole: shapes, lengths, precision, recomputation, initialisation."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from clipfast.models import CLIP, AttentionPool2d, create_model, frozen_statistics
from tests.models.helpers import (
    assert_near,
    random_images,
    random_tokens,
    randomize_vectors,
    small_model,
)

BOTH = pytest.mark.parametrize("name", ["RN-tiny", "ViT-tiny"])


def step(model: CLIP) -> tuple[Tensor, Tensor]:
    """One forward and backward pass in which every parameter takes part."""
    u, v, scale = model(random_images(3, 64), random_tokens(3, 20, 500))
    (scale * (u.float() * v.float()).sum()).sum().backward()
    return u.detach(), v.detach()


def test_encode_text_does_not_depend_on_the_padding() -> None:
    model = small_model("ViT-tiny").eval()
    tokens = random_tokens(3, 77, 500)
    tokens = torch.cat([tokens[:, -20:], torch.zeros_like(tokens[:, 20:])], dim=1)
    with torch.no_grad():
        padded, cut = model.encode_text(tokens), model.encode_text(tokens[:, :20])
        assert_near(cut, padded, 1e-5)
        short = model.encode_text(tokens[2:, :14])
        assert_near(short, padded[2:], 1e-5)


def test_encode_text_reads_the_row_of_the_largest_token() -> None:
    model = small_model("ViT-tiny").eval()
    tokens = random_tokens(2, 20, 500)
    with torch.no_grad():
        base = model.encode_text(tokens)
        behind, before = tokens.clone(), tokens.clone()
        behind[1, 18] = 7
        before[1, 3] = (tokens[1, 3] + 1) % 400
        assert torch.equal(model.encode_text(behind), base)
        assert not torch.allclose(model.encode_text(before)[1], base[1], rtol=1e-3, atol=1e-3)


@BOTH
def test_forward_skips_a_missing_side(name: str) -> None:
    model = small_model(name).eval()
    images, tokens = random_images(2, 64), random_tokens(2, 20, 500)
    with torch.no_grad():
        u, v, scale = model(images, tokens)
        only_u, none_v, _ = model(images=images)
        none_u, only_v, same_scale = model(tokens=tokens)
    assert none_v is None
    assert none_u is None
    assert torch.equal(only_u, u)
    assert torch.equal(only_v, v)
    assert scale.shape == same_scale.shape == (1,)
    assert scale.item() == pytest.approx(1 / 0.07)


def test_forward_runs_the_text_tower_first() -> None:
    model = small_model("ViT-tiny")
    order: list[str] = []
    model.visual.register_forward_pre_hook(lambda *_: order.append("image"))
    model.transformer.register_forward_hook(lambda *_: order.append("text"))
    model(random_images(1, 64), random_tokens(1, 20, 500))
    assert order == ["text", "image"]


def test_inputs_of_another_shape_are_refused_with_the_remedy() -> None:
    model = small_model("RN-tiny")
    with pytest.raises(ValueError, match=r"images \[B, 3, 64, 64\], got \[1, 3, 32, 32\].*image_s"):
        model.encode_image(random_images(1, 32))
    with pytest.raises(TypeError, match=r"floating-point images, got torch\.uint8"):
        model.encode_image(torch.zeros(1, 3, 64, 64, dtype=torch.uint8))
    with pytest.raises(ValueError, match=r"L <= 77, got \[1, 78\].*truncate"):
        model.encode_text(torch.zeros(1, 78, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"\[B, 8, 2, 2\], got \[1, 8, 3, 2\]"):
        AttentionPool2d(2, 8, 2, 4)(torch.zeros(1, 8, 3, 2))
    with pytest.raises(ValueError, match="num_heads=3 must divide embed_dim=8"):
        AttentionPool2d(2, 8, 3)


def test_attention_pool_equals_torchs_multi_head_attention() -> None:
    torch.manual_seed(0)
    pool = AttentionPool2d(3, 24, 4, 10).double()
    attention = nn.MultiheadAttention(24, 4, batch_first=True).double()
    projections = (pool.q_proj, pool.k_proj, pool.v_proj)
    with torch.no_grad():
        attention.in_proj_weight.copy_(torch.cat([p.weight for p in projections]))
        attention.in_proj_bias.copy_(torch.cat([p.bias for p in projections]))
        attention.out_proj.weight.copy_(torch.eye(24))
        x = torch.randn(5, 24, 3, 3, dtype=torch.float64)
        tokens = x.flatten(2).transpose(1, 2)
        tokens = torch.cat([tokens.mean(1, keepdim=True), tokens], 1) + pool.positional_embedding
        expected = pool.c_proj(attention(tokens, tokens, tokens)[0][:, 0])
        assert_near(pool(x), expected, 1e-14)
        assert_near(pool(x.contiguous(memory_format=torch.channels_last)), expected, 1e-14)


@BOTH
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_model_is_near_fp32(name: str, dtype: torch.dtype) -> None:
    model = small_model(name)
    u, v = step(model)
    half = small_model(name).to(dtype)
    half_u, half_v = step(half)
    assert half_u.dtype == half_v.dtype == dtype
    tolerance = 0.1 if dtype == torch.bfloat16 else 0.02
    assert_near(half_u.float(), u, tolerance)
    assert_near(half_v.float(), v, tolerance)
    for key, parameter in half.named_parameters():
        assert parameter.grad.isfinite().all(), key


@BOTH
def test_autocast_step_is_finite_and_near_fp32(name: str) -> None:
    u, v = step(small_model(name))
    model = small_model(name)
    with torch.autocast("cpu", torch.bfloat16):
        auto_u, auto_v = step(model)
    assert_near(auto_u.float(), u, 0.1)
    assert_near(auto_v.float(), v, 0.1)
    for key, parameter in model.named_parameters():
        assert parameter.grad.isfinite().all(), key


def test_compiled_image_tower_equals_eager_and_counts_each_batch_once() -> None:
    overrides = {"vision_layers": (1, 1, 1, 1), "recompute": "full"}
    eager, model = small_model("RN-tiny", **overrides), small_model("RN-tiny", **overrides)
    compiled = torch.compile(model.visual, backend="aot_eager", fullgraph=True)
    images = random_images(3, 64)
    outputs = [tower(images) for tower in (compiled, eager.visual)]
    for output in outputs:
        output.square().sum().backward()
    assert_near(outputs[0], outputs[1], 1e-5)
    assert_near(model.visual.conv1.weight.grad, eager.visual.conv1.weight.grad, 1e-4)
    norm, expected = model.visual.layer4[0].bn3, eager.visual.layer4[0].bn3
    assert_near(norm.running_mean, expected.running_mean, 1e-5)
    with frozen_statistics(), torch.no_grad():
        compiled(images)
    assert norm.num_batches_tracked == 1


def expected_deviations(model: CLIP) -> dict[str, tuple[Tensor, float]]:
    text, width = model.transformer.resblocks[1], model.config.text.width
    proj = (width * 2 * model.config.text.layers) ** -0.5
    return {
        "token_embedding": (model.token_embedding.weight, 0.02),
        "positional_embedding": (model.positional_embedding, 0.01),
        "text_projection": (model.text_projection, width**-0.5),
        "text attention": (text.attn.in_proj_weight, width**-0.5),
        "text out_proj": (text.attn.out_proj.weight, proj),
        "text c_fc": (text.mlp.c_fc.weight, (2 * width) ** -0.5),
        "text c_proj": (text.mlp.c_proj.weight, proj),
    }


def expected_vision_deviations(model: CLIP) -> dict[str, tuple[Tensor, float]]:
    visual = model.visual
    if model.config.name == "RN-tiny":
        pool = visual.attnpool
        width = pool.embed_dim
        layers = (pool.q_proj, pool.k_proj, pool.v_proj, pool.c_proj)
        found = {f"attnpool {i}": (m.weight, width**-0.5) for i, m in enumerate(layers)}
        conv = visual.layer3[1].conv2.weight
        return {
            **found,
            "attnpool positions": (pool.positional_embedding, width**-0.5),
            "conv": (conv, (3 * conv[0].numel()) ** -0.5),
        }
    block, width = visual.transformer.resblocks[1], model.config.vision.width
    return {
        "class_embedding": (visual.class_embedding, width**-0.5),
        "positional_embedding": (visual.positional_embedding, width**-0.5),
        "proj": (visual.proj, width**-0.5),
        "in_proj (Xavier)": (block.attn.in_proj_weight, (2 / (4 * width)) ** 0.5),
        "out_proj (uniform)": (block.attn.out_proj.weight, (3 * width) ** -0.5),
        "c_fc (uniform)": (block.mlp.c_fc.weight, (3 * width) ** -0.5),
        "c_proj (uniform)": (block.mlp.c_proj.weight, (3 * 4 * width) ** -0.5),
    }


def assert_initialised(model: CLIP) -> None:
    deviations = {**expected_deviations(model), **expected_vision_deviations(model)}
    for name, (parameter, std) in deviations.items():
        tolerance = max(0.02, 5 / (2 * parameter.numel()) ** 0.5)
        assert parameter.std().item() == pytest.approx(std, rel=tolerance), name
    assert model.logit_scale.item() == pytest.approx(math.log(1 / 0.07))
    for name, parameter in model.named_parameters():
        if name.endswith(("in_proj_bias", "out_proj.bias")):
            assert parameter.abs().max() == 0, name
        if ".bn" in name and name.endswith("weight"):
            is_last = ".layer" in name and name.endswith("bn3.weight")
            assert (parameter == (0 if is_last else 1)).all(), name


@BOTH
def test_create_model_starts_from_the_papers_deviations(name: str) -> None:
    torch.manual_seed(0)
    assert_initialised(create_model(name))


@BOTH
def test_model_built_on_meta_is_filled_by_initialize(name: str) -> None:
    with torch.device("meta"):
        model = create_model(name)
    assert all(p.is_meta for p in model.parameters())
    model = model.to_empty(device="cpu")
    with torch.no_grad():
        for tensor in [*model.parameters(), *model.buffers()]:
            tensor.fill_(77)
    torch.manual_seed(0)
    model.initialize()
    assert_initialised(model)
    for name_, buffer in model.named_buffers():
        assert (buffer == (1 if name_.endswith("running_var") else 0)).all(), name_
    left = [n for n, p in model.named_parameters() if (p == 77).any()]
    assert not left


def test_every_parameter_gets_a_gradient() -> None:
    for name in ("RN-tiny", "ViT-tiny"):
        model = small_model(name)
        randomize_vectors(model)
        step(model)
        assert not [n for n, p in model.named_parameters() if p.grad is None]
