"""GELU and QuickGELU: what a model computes, and which of them weights were trained with."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from clipfast.models import CLIP, create_model, export, load_weights, read_metadata
from clipfast.models.transformer import ResidualAttentionBlock
from tests.models.helpers import assert_near, random_images, random_tokens, small_model
from tests.models.test_weights import assert_same_state, openclip_twin
from tests.peers import import_open_clip


def assumed(model: CLIP, path: Path, **options: Any) -> list[str]:
    """What loading a file says about an activation."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        load_weights(model, path, **options)
    return [str(each.message) for each in said if "gelu" in str(each.message)]


@pytest.mark.parametrize("name", ["RN-tiny", "ViT-tiny"])
def test_activation_reaches_every_block_and_moves_no_random_number(name: str) -> None:
    quick, plain = small_model(name), small_model(name, activation="gelu")
    assert_same_state(plain.state_dict(), quick.state_dict())
    blocks = [m for m in plain.modules() if isinstance(m, ResidualAttentionBlock)]
    assert all(type(block.mlp.gelu) is nn.GELU for block in blocks)
    assert len(blocks) == (2 if name == "RN-tiny" else 9)
    tokens = random_tokens(2, 77, 500)
    assert not torch.equal(quick.encode_text(tokens), plain.encode_text(tokens))


def test_activation_is_one_of_two() -> None:
    with pytest.raises(ValueError, match="activation must be one of quick_gelu, gelu; got 'relu'"):
        create_model("ViT-tiny", activation="relu")


@pytest.mark.parametrize("name", [pytest.param("ViT-B-32", marks=pytest.mark.thorough), "RN50"])
def test_gelu_features_equal_openclips_default_models(name: str, tmp_path: Path) -> None:
    open_clip = import_open_clip()
    config = open_clip.get_model_config(name)
    assert not config.get("quick_gelu")
    torch.manual_seed(0)
    theirs = open_clip.model.CLIP(**config).eval()
    with torch.no_grad():
        for key, parameter in theirs.named_parameters():
            if "mlp" in key and "weight" in key:
                parameter.mul_(3)  # an MLP whose share is that of trained weights
    torch.save(theirs.state_dict(), tmp_path / "model.pt")
    ours = create_model({"ViT-B-32": "ViT-B/32"}.get(name, name), activation="gelu").eval()
    assert assumed(ours, tmp_path / "model.pt", activation="gelu") == []
    images, tokens = random_images(2, 224), random_tokens(2, 77, 49408)
    with torch.no_grad():
        for actual, expected in (
            (ours.encode_image(images), theirs.encode_image(images)),
            (ours.encode_text(tokens), theirs.encode_text(tokens)),
        ):
            assert_near(actual, expected, 1e-5)


def test_gelu_gradients_equal_openclip() -> None:
    ours = small_model("ViT-tiny", activation="gelu")
    theirs = openclip_twin(ours, quick_gelu=False)
    state = {name: tensor.clone() for name, tensor in ours.state_dict().items()}
    theirs.load_state_dict({**state, "logit_scale": state["logit_scale"][0]})
    images = random_images(2, 64)
    ours.encode_image(images).sum().backward()
    theirs.encode_image(images).sum().backward()
    assert_near(ours.visual.conv1.weight.grad, theirs.visual.conv1.weight.grad, 1e-4)


@pytest.mark.parametrize("recompute", ["none", "selective", "full"])
def test_gelu_gradients_are_the_same_bits_when_recomputed(recompute: str) -> None:
    images = random_images(2, 64)
    models = [small_model("ViT-tiny", activation="gelu", recompute=r) for r in ("none", recompute)]
    for model in models:
        model.encode_image(images).square().sum().backward()
    for first, second in zip(*(m.visual.parameters() for m in models), strict=True):
        assert torch.equal(first.grad, second.grad)


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_an_exported_file_says_its_activation(suffix: str, activation: str, tmp_path: Path) -> None:
    path = tmp_path / f"model{suffix}"
    model = small_model("ViT-tiny", activation=activation)
    export(model, path)
    assert read_metadata(path).activation == activation
    assert assumed(small_model("ViT-tiny", activation=activation), path) == []
    assert create_model.from_file(path).config == model.config
    other = {"quick_gelu": "gelu", "gelu": "quick_gelu"}[activation]
    with pytest.raises(ValueError, match=rf"trained with {activation} .*activation='{activation}'"):
        load_weights(small_model("ViT-tiny", activation=other), path)


def test_what_is_assumed_is_said_once_a_file_is_loaded(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    torch.save(small_model("ViT-tiny").state_dict(), path)
    (said,) = assumed(small_model("ViT-tiny"), path)
    assert said.startswith(f"{path} does not say which activation it was trained with: quick_gelu")
    assert "have gelu (create_model(..., activation='gelu'), --model.activation gelu)" in said
    (said,) = assumed(small_model("ViT-tiny", activation="gelu"), path)
    assert "trained with: gelu is assumed" in said
    assert assumed(small_model("ViT-tiny"), path, activation="quick_gelu") == []
    assert assumed(small_model("ViT-tiny"), path, other_activation=True) == []
    with pytest.raises(ValueError, match="trained with gelu"):
        load_weights(small_model("ViT-tiny"), path, activation="gelu")
    with pytest.raises(ValueError, match="activation must be one of"):
        load_weights(small_model("ViT-tiny"), path, activation="swish")


OPENCLIP = {"embed_dim": 256, "vision_cfg": {}, "text_cfg": {}}
HUGGING_FACE = {"model_type": "clip", "vision_config": {}, "text_config": {}}
GELU_TOWER = {"hidden_act": "gelu"}


@pytest.mark.parametrize(
    ("name", "config", "activation"),
    [
        ("open_clip_config.json", {"model_cfg": OPENCLIP}, "gelu"),
        ("open_clip_config.json", {"model_cfg": {**OPENCLIP, "quick_gelu": True}}, "quick_gelu"),
        ("model.json", OPENCLIP, "gelu"),
        ("model.pt.json", {**OPENCLIP, "quick_gelu": True}, "quick_gelu"),
        ("config.json", HUGGING_FACE, "quick_gelu"),
        (
            "config.json",
            {**HUGGING_FACE, "vision_config": GELU_TOWER, "text_config": GELU_TOWER},
            "gelu",
        ),
    ],
)
def test_a_configuration_beside_a_file_says_its_activation(
    name: str, config: dict, activation: str, tmp_path: Path
) -> None:
    path = tmp_path / "model.pt"
    torch.save(small_model("ViT-tiny").state_dict(), path)
    (tmp_path / name).write_text(json.dumps(config))
    assert assumed(small_model("ViT-tiny", activation=activation), path) == []
    other = {"quick_gelu": "gelu", "gelu": "quick_gelu"}[activation]
    with pytest.raises(ValueError, match=rf"trained with {activation} \(as {name} beside it says"):
        load_weights(small_model("ViT-tiny", activation=other), path)


@pytest.mark.parametrize(
    "text",
    ["[1]", "{", "[" * 9999, '{"model_cfg": 3}', '{"vision_cfg": 1, "text_cfg": 2}', " " * 2**21],
)
def test_a_configuration_that_is_none_says_nothing(text: str, tmp_path: Path) -> None:
    torch.save(small_model("ViT-tiny").state_dict(), tmp_path / "model.pt")
    (tmp_path / "config.json").write_text(text)
    assert len(assumed(small_model("ViT-tiny"), tmp_path / "model.pt")) == 1


def test_configurations_of_another_activation_are_refused_or_say_nothing(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    torch.save(small_model("ViT-tiny").state_dict(), path)
    tanh = {**OPENCLIP, "vision_cfg": {"act_kwargs": {"approximate": "tanh"}}}
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": tanh}))
    with pytest.raises(ValueError, match=r"gelu with act_kwargs .* Models here have quick_gelu"):
        load_weights(small_model("ViT-tiny", activation="gelu"), path)
    (tmp_path / "config.json").write_text(json.dumps(HUGGING_FACE))
    assert len(assumed(small_model("ViT-tiny"), path)) == 1


@pytest.mark.parametrize(
    ("lines", "activation"),
    [
        ("model: ViT-B-32\nforce_quick_gelu: False\npretrained: \n", "gelu"),
        ("model: ViT-B-32-quickgelu\nforce_quick_gelu: False\n", "quick_gelu"),
        ("model: ViT-B-32\nforce_quick_gelu: True\n", "quick_gelu"),
        ("model: ViT-B-32\npretrained: openai\n", None),
        ("lr: 0.1\n", None),
    ],
)
def test_the_run_of_openclip_says_the_activation_of_its_checkpoints(
    lines: str, activation: str | None, tmp_path: Path
) -> None:
    (tmp_path / "params.txt").write_text(lines)
    path = tmp_path / "checkpoints" / "epoch_1.pt"
    path.parent.mkdir()
    torch.save({"state_dict": small_model("ViT-tiny").state_dict()}, path)
    told = assumed(small_model("ViT-tiny", activation=activation or "gelu"), path)
    assert len(told) == (activation is None)
