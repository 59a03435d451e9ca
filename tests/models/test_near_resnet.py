"""The tower of detectors against plain lines in float64; its scale from block to block."""

import pytest
import torch
import torch.nn.functional as F

from clipfast.models import create_model, export
from clipfast.models.blur_pool import blur_pool
from clipfast.models.detectors import NEAR_RN50, NEAR_TINY, TEMPERATURE
from clipfast.models.from_file import create_model_from_file
from clipfast.models.near_resnet import NearResNet, NearResNetConfig
from clipfast.models.step_flop import image_flop, pair_flop
from clipfast.models.weight_norm import WeightNormConv2d
from clipfast.optim import parameter_groups


def plain_conv(state, name, x):
    weight = state[f"{name}.weight"]
    length = weight.flatten(1).norm(dim=1)[:, None, None, None]
    filters = state[f"{name}.gain"][:, None, None, None] * weight / length
    return F.conv2d(x, filters, state[f"{name}.bias"], padding=weight.shape[-1] // 2)


def plain_pool(x):
    """Each point beside its neighbours, weighed 1, 2, 1 both ways, every second of them."""
    padded = F.pad(x, (1, 1, 1, 1))
    rows = padded[..., :-2, :] + 2 * padded[..., 1:-1, :] + padded[..., 2:, :]
    both = rows[..., :-2] + 2 * rows[..., 1:-1] + rows[..., 2:]
    return both[..., ::2, ::2] / 16


def plain_tower(state, x, blocks, halving):
    gelu = torch.nn.GELU()
    x = gelu(plain_pool(plain_conv(state, "stem1", x)))
    x = plain_pool(plain_conv(state, "stem2", x))
    for i in range(blocks):
        name = f"blocks.{i}"
        y = gelu(plain_conv(state, f"{name}.conv1", gelu(x)))
        if i in halving:
            x, y = plain_pool(x), plain_pool(y)
        y = plain_conv(state, f"{name}.conv3", gelu(plain_conv(state, f"{name}.conv2", y)))
        if f"{name}.shortcut.weight" in state:
            x = plain_conv(state, f"{name}.shortcut", x)
        x = x + y
    x = gelu(x).mean(dim=(2, 3))
    return x @ state["projection.weight"].T + state["projection.bias"]


def test_near_resnet_is_the_plain_lines_in_float64():
    torch.manual_seed(0)
    config = NearResNetConfig((2, 1, 2), width=5, image_size=48, stem_width=7)
    tower = NearResNet(config, 11).double()
    with torch.no_grad():
        for parameter in tower.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    images = torch.randn(3, 3, 48, 48, dtype=torch.float64)
    truth = plain_tower(tower.state_dict(), images, 5, halving={2, 3})
    torch.testing.assert_close(tower(images), truth, rtol=1e-12, atol=1e-12)
    # In float32 the error is rounding's alone.
    found = tower.float()(images.float()).double()
    assert (found - truth).abs().max() < 1e-5 * truth.abs().max()


def test_blur_pool_of_a_constant_is_that_constant_inside():
    pooled = blur_pool(torch.full((1, 3, 8, 10), 2.0))
    assert pooled.shape == (1, 3, 4, 5)
    assert torch.equal(pooled[..., 1:, 1:], torch.full((1, 3, 3, 4), 2.0))


def test_weight_norm_does_not_feel_the_length_of_its_weights():
    torch.manual_seed(0)
    conv, x = WeightNormConv2d(6, 4, 3), torch.randn(2, 6, 5, 7)
    before = conv(x)
    with torch.no_grad():
        conv.weight.mul_(37.0)
    torch.testing.assert_close(conv(x), before)
    assert 0.7 < WeightNormConv2d(64, 512, 3, gain=1.0)(torch.randn(2, 64, 9, 9)).std() < 1.3


@pytest.mark.parametrize("layers", [(2, 2, 2), (3, 4, 6, 3)])
def test_near_resnet_keeps_its_scale_from_block_to_block(layers):
    """Without a batch norm: no factor per block that depth would raise to a power."""
    torch.manual_seed(0)
    side = 32 << len(layers) >> 1
    tower = NearResNet(NearResNetConfig(layers, width=16, image_size=side, stem_width=8), 8)
    sizes: list[float] = []
    for block in tower.blocks:
        block.register_forward_hook(lambda m, i, o: sizes.append(o.square().mean().item()))
    # Smooth, as pictures are: noise of single pixels is what a blur takes away.
    images = F.interpolate(torch.randn(4, 3, 8, 8), size=side, mode="bicubic")
    tower(images)
    # A blur takes some of it at every stride; a factor of 2 per block would be 65,536 at 16 blocks.
    assert max(sizes) < 4 * sizes[0]
    assert min(sizes) > sizes[0] / 8


def test_detectors_are_as_large_as_they_say():
    sizes = {a.name: sum(p.numel() for p in create_model(a.name).parameters()) for a in
             (NEAR_TINY, NEAR_RN50)}  # fmt: skip
    assert sizes == {"near-tiny": 545_968, "near-RN50": 24_081_568}
    assert image_flop(NEAR_TINY) / 3 == pytest.approx(56e6, rel=0.02)
    both = pair_flop(NEAR_TINY, torch.ones(4), 256)
    assert both == 2 * image_flop(NEAR_TINY) + 6 * 256 * NEAR_TINY.embed_dim


def test_detectors_hold_their_temperature():
    model = create_model("near-tiny")
    assert "logit_scale" not in dict(model.named_parameters())
    images = torch.randn(3, 3, 64, 64)
    one, other, scale = model(images, images)
    assert torch.equal(one, other)
    assert torch.equal(scale, torch.tensor([1 / TEMPERATURE]))
    assert not scale.requires_grad
    groups = parameter_groups(model, 0.5)
    assert all("maximum" not in group for group in groups)
    decayed = {id(p) for g in groups if g["weight_decay"] for p in g["params"]}
    named = dict(model.named_parameters())
    assert id(named["visual.blocks.0.conv1.weight"]) in decayed
    for name in ("gain", "bias"):
        assert id(named[f"visual.blocks.0.conv1.{name}"]) not in decayed
    # In half precision it is as exact.
    assert model.bfloat16()(images.bfloat16())[2].item() == pytest.approx(1 / TEMPERATURE, 1e-7)


def test_detectors_come_back_from_a_file(tmp_path):
    torch.manual_seed(3)
    model = create_model("near-tiny", vision_layers=(1, 2), image_size=40)
    export(model, tmp_path / "weights.safetensors")
    again = create_model_from_file(tmp_path / "weights.safetensors")
    assert again.config == model.config
    images = torch.randn(2, 3, 40, 40)
    assert torch.equal(again.encode_image(images), model.encode_image(images))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"vision_layers": ()}, "positive block count"),
        ({"image_size": 72}, "multiple of 16"),
        ({"stem_width": 0}, "stem_width must be positive"),
        ({"temperature": -1.0}, "temperature must be positive"),
        ({"context_length": 5}, "context_length"),
    ],
)
def test_detectors_refuse_what_cannot_be(options, says):
    with pytest.raises(ValueError, match=says):
        create_model("near-tiny", **options)


def test_detectors_have_no_captions():
    with pytest.raises(ValueError, match="near-tiny reads pictures alone"):
        NEAR_TINY.captions  # noqa: B018
