"""The models against OpenCLIP's, with the same random weights."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
from torch import nn

from clipfast.models import CLIP, create_model, num_parameters
from tests.models.helpers import assert_near, random_images, random_tokens, randomize_vectors
from tests.peers import import_open_clip

OPENCLIP_NAMES = {
    "RN50": "RN50-quickgelu",
    "RN101": "RN101-quickgelu",
    "RN50x4": "RN50x4-quickgelu",
    "RN50x16": "RN50x16-quickgelu",
    "RN50x64": "RN50x64-quickgelu",
    "ViT-B/32": "ViT-B-32-quickgelu",
    "ViT-B/16": "ViT-B-16-quickgelu",
    "ViT-L/14": "ViT-L-14-quickgelu",
    "ViT-L/14@336px": "ViT-L-14-336-quickgelu",
}


def openclip_model(name: str, **vision: object) -> nn.Module:
    open_clip = import_open_clip()
    config = open_clip.get_model_config(OPENCLIP_NAMES[name])
    assert config["quick_gelu"]
    config["vision_cfg"].update(vision)
    return open_clip.model.CLIP(**config)


def pair(name: str, **vision: object) -> tuple[CLIP, nn.Module]:
    """Our model and OpenCLIP's with one set of random weights."""
    torch.manual_seed(0)
    theirs = openclip_model(name, **vision)
    randomize_vectors(theirs)
    overrides = {("vision_layers" if k == "layers" else k): v for k, v in vision.items()}
    with torch.device("meta"):
        ours = create_model(name, **overrides)
    state = theirs.state_dict()
    state["logit_scale"] = state["logit_scale"].reshape(1)
    for key, _ in theirs.named_buffers():
        if key in state:
            state[key] = state[key].clone()  # parameters may be shared, running statistics not
    ours.load_state_dict(state, strict=True, assign=True)
    return ours, theirs


def gradients(model: nn.Module, features: torch.Tensor, cotangent: torch.Tensor) -> dict:
    features.backward(cotangent)
    return {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


def assert_gradients_near(ours: dict, theirs: dict, tolerance: float) -> None:
    assert ours.keys() == theirs.keys()
    for name, expected in theirs.items():
        # The key bias shifts every score alike: its gradient is zero but for rounding.
        if name.endswith("k_proj.bias"):
            continue
        if name.endswith("in_proj_bias"):
            width = len(expected) // 3
            keep = torch.ones(len(expected), dtype=torch.bool)
            keep[width : 2 * width] = False
            assert_near(ours[name][keep], expected[keep], tolerance)
            continue
        assert_near(ours[name], expected, tolerance)


@pytest.mark.parametrize("name", OPENCLIP_NAMES)
def test_create_model_has_openclips_names_shapes_and_count(name: str) -> None:
    with torch.device("meta"):
        theirs, ours = openclip_model(name), create_model(name)
    expected = {key: tuple(value.shape) for key, value in theirs.state_dict().items()}
    actual = {key: tuple(value.shape) for key, value in ours.state_dict().items()}
    assert actual.pop("logit_scale") == (1,)
    assert expected.pop("logit_scale") == ()
    assert actual == expected
    assert num_parameters(ours) == sum(p.numel() for p in theirs.parameters())


def test_list_models_holds_the_nine_and_two_tiny_ones() -> None:
    # In a fresh process: other tests import modules that register models.
    program = "import json, clipfast; print(json.dumps(clipfast.list_models()))"
    told = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True).stdout
    assert json.loads(told) == [*OPENCLIP_NAMES, "RN-tiny", "ViT-tiny"]


@pytest.mark.parametrize(
    ("name", "vision"),
    [
        ("RN50", {}),
        pytest.param("RN50x4", {}, marks=pytest.mark.thorough),
        ("ViT-B/32", {}),
        pytest.param("ViT-L/14@336px", {"image_size": 42}, marks=pytest.mark.thorough),
    ],
    ids=["RN50", "RN50x4", "ViT-B/32", "ViT-L/14 at 42 px"],
)
def test_both_towers_equal_openclip_in_eval_mode(name: str, vision: dict) -> None:
    ours, theirs = pair(name, **vision)
    ours.eval(), theirs.eval()
    images = random_images(2, ours.config.vision.image_size)
    tokens = random_tokens(2, 77, 49408)
    with torch.no_grad():
        image_features, text_features, scale = ours(images, tokens)
        assert_near(image_features, theirs.encode_image(images), 1e-5)
        assert_near(text_features, theirs.encode_text(tokens), 1e-5)
        assert scale.item() == pytest.approx(theirs.logit_scale.exp().item())


def test_resnet_training_step_equals_openclip() -> None:
    # In fp64: at 3x3 positions a channel's variance can be so small that the order of summation
    # moves fp32 gradients by percents, OpenCLIP's own between its two memory formats as well.
    ours, theirs = (model.double() for model in pair("RN50", image_size=96))
    images, cotangent = random_images(4, 96).double(), torch.randn(4, 1024).double()
    features, expected = ours.encode_image(images), theirs.encode_image(images)
    assert_near(features.detach(), expected.detach(), 1e-12)
    ours_grads = gradients(ours, features, cotangent)
    assert_gradients_near(ours_grads, gradients(theirs, expected, cotangent), 1e-9)
    theirs_buffers = dict(theirs.visual.named_buffers())
    for name, buffer in ours.visual.named_buffers():
        torch.testing.assert_close(buffer, theirs_buffers[name], rtol=1e-5, atol=1e-6)


def test_transformer_gradients_equal_openclip() -> None:
    ours, theirs = pair("ViT-B/32", image_size=64, layers=3)
    images, tokens = random_images(2, 64), random_tokens(2, 77, 49408)
    cotangent = torch.randn(2, 512)
    image_features, text_features, _ = ours(images, tokens)
    ours_grads = gradients(ours, image_features + text_features, cotangent)
    expected = theirs.encode_image(images) + theirs.encode_text(tokens)
    assert_gradients_near(ours_grads, gradients(theirs, expected, cotangent), 1e-4)


@pytest.mark.parametrize("name", ["RN50", "ViT-B/32"])
def test_initial_scales_equal_openclip(name: str) -> None:
    torch.manual_seed(0)
    theirs = dict(openclip_model(name).named_parameters())
    for key, parameter in create_model(name).named_parameters():
        expected, actual = theirs[key].detach().float(), parameter.detach()
        if expected.numel() < 512 or expected.std() == 0:
            torch.testing.assert_close(actual.mean(), expected.mean(), rtol=0, atol=0.02, msg=key)
            continue
        sampling = 6 / (2 * expected.numel()) ** 0.5
        assert (actual.std() / expected.std() - 1).abs() < sampling, key
        assert actual.abs().max() < 2 * expected.abs().max(), key
