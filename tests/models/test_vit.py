"""The vision transformer against one that computes every token of every block."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from clipfast.models import CLIP
from clipfast.models.sequences import UniformLayout
from clipfast.models.vit import PatchEmbedding
from tests.models.helpers import assert_near, random_images, small_model
from tests.models.plain_towers import (
    assert_errs_no_more_than_plain,
    gradients_of,
    plain_encode_image,
)

FORMATS = [torch.contiguous_format, torch.channels_last]


def vit(dtype: torch.dtype = torch.float64, device: str = "cpu", **overrides) -> CLIP:
    return small_model("ViT-tiny", text_layers=1, **overrides).to(device, dtype)


@pytest.mark.parametrize("memory_format", FORMATS, ids=["contiguous", "channels_last"])
@pytest.mark.parametrize(
    "overrides",
    [
        {"vision_layers": 3},
        {"vision_layers": 1},
        {"vision_layers": 2, "image_size": 21, "patch_size": 7},
        {"vision_layers": 2, "image_size": 8, "patch_size": 8},
    ],
    ids=["three blocks", "one block", "odd patches", "one patch"],
)
@pytest.mark.parametrize("batch", [1, 5])
def test_encode_image_equals_the_tower_of_all_tokens(batch, overrides, memory_format) -> None:
    model = vit(**overrides)
    images = random_images(batch, model.config.vision.image_size).double()
    images = images.to(memory_format=memory_format)
    expected, actual = plain_encode_image(model, images), model.encode_image(images)
    cotangent = torch.randn_like(expected)
    assert_near(actual.detach(), expected.detach(), 1e-12)
    wanted = gradients_of(model, expected, cotangent)
    grads = gradients_of(model, actual, cotangent)
    assert grads.keys() == wanted.keys()
    assert "visual.transformer.resblocks.0.attn.in_proj_weight" in wanted
    for name, gradient in wanted.items():
        assert_near(grads[name], gradient, 1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_encode_image_in_half_precision_errs_no_more_than_the_tower_of_all_tokens(dtype) -> None:
    model, exact_model = vit(torch.float32).to(dtype), vit()
    exact_model.load_state_dict(model.state_dict())
    images = random_images(4, 64).to(dtype)
    with torch.no_grad():
        exact = plain_encode_image(exact_model, images.double())
        plain = plain_encode_image(model, images).double()
        ours = model.encode_image(images).double()
    assert (ours - exact).norm() <= 1.2 * (plain - exact).norm()


@pytest.mark.parametrize("memory_format", FORMATS, ids=["contiguous", "channels_last"])
def test_patch_embedding_is_its_convolution(memory_format) -> None:
    embed = PatchEmbedding(24, 6).double()
    images = random_images(3, 18).double().to(memory_format=memory_format).requires_grad_()
    expected = F.conv2d(images, embed.weight, stride=6).flatten(2).transpose(1, 2)
    actual = embed(images)
    cotangent = torch.randn_like(expected)
    inputs = (images, embed.weight)
    assert_near(actual.detach(), expected.detach(), 1e-13)
    for ours, theirs in zip(
        torch.autograd.grad(actual, inputs, cotangent),
        torch.autograd.grad(expected, inputs, cotangent),
        strict=True,
    ):
        assert_near(ours, theirs, 1e-13)


def test_the_last_block_multiplies_the_class_token_alone() -> None:
    model = vit(torch.float32, vision_layers=2)
    rows: dict[str, int] = {}
    for i, block in enumerate(model.visual.transformer.resblocks):
        block.mlp.c_fc.register_forward_hook(
            lambda module, inputs, output, name=f"mlp {i}": rows.update({name: len(output)})
        )
    model.encode_image(random_images(3, 64))
    assert rows == {"mlp 0": 3 * 65, "mlp 1": 3}


def test_uniform_layout_reads_the_first_token_of_each_sequence() -> None:
    x = torch.arange(12.0).view(6, 2)
    assert torch.equal(UniformLayout(2, 3).read(x), x[[0, 3]])


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_encode_image_on_a_gpu_errs_no_more_than_the_tower_of_all_tokens(dtype) -> None:
    model = vit(torch.float32, "cuda").to(dtype)
    assert_errs_no_more_than_plain(
        model,
        vit(device="cuda"),
        model.encode_image,
        plain_encode_image,
        random_images(4, 64).to("cuda", dtype),
    )


@pytest.mark.gpu
def test_the_image_tower_is_captured_in_a_cuda_graph() -> None:
    model = vit(torch.bfloat16, "cuda", vision_layers=2)
    images = random_images(4, 64).to("cuda", torch.bfloat16)
    expected = model.encode_image(images).detach().clone()
    tower = torch.cuda.make_graphed_callables(model.visual, (images.clone(),))
    features = tower(images)
    features.sum().backward()
    assert torch.equal(features.detach(), expected)
    assert model.visual.proj.grad.isfinite().all()
