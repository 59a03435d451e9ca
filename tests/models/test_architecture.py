"""Names, overrides and sizes of the models."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from clipfast.models import create_model, list_models, num_parameters
from clipfast.models.catalogue import get_config


@pytest.mark.parametrize(
    ("name", "embed", "image", "vision_heads", "text_width", "text_heads"),
    [
        ("RN50", 1024, 224, 32, 512, 8),
        ("RN101", 512, 224, 32, 512, 8),
        ("RN50x4", 640, 288, 40, 640, 10),
        ("RN50x16", 768, 384, 48, 768, 12),
        ("RN50x64", 1024, 448, 64, 1024, 16),
        ("ViT-B/32", 512, 224, 12, 512, 8),
        ("ViT-B/16", 512, 224, 12, 512, 8),
        ("ViT-L/14", 768, 224, 16, 768, 12),
        ("ViT-L/14@336px", 768, 336, 16, 768, 12),
    ],
)
def test_get_config_equals_the_papers_tables(
    name: str, embed: int, image: int, vision_heads: int, text_width: int, text_heads: int
) -> None:
    config = get_config(name)
    assert (config.embed_dim, config.vision.image_size) == (embed, image)
    assert config.vision.heads == vision_heads
    assert (config.text.width, config.text.heads, config.text.layers) == (
        text_width,
        text_heads,
        12,
    )
    assert (config.text.context_length, config.text.vocab_size) == (77, 49408)


@pytest.mark.parametrize("name", ["RN-tiny", "ViT-tiny"])
def test_create_model_tiny_has_about_17m_parameters(name: str) -> None:
    with torch.device("meta"):
        model = create_model(name)
    assert 16e6 < num_parameters(model) < 18e6
    assert model.config.vision.image_size == 64


def test_create_model_unknown_name_suggests_the_nearest_and_lists_all() -> None:
    with pytest.raises(ValueError, match="Did you mean 'ViT-B/32'") as error:
        create_model("ViT-B-32")
    assert all(name in str(error.value) for name in list_models())


def test_create_model_unknown_override_suggests_the_nearest_and_lists_all() -> None:
    with pytest.raises(ValueError, match=r"'text_layer' of RN50\. Did you mean 'text_layers'"):
        create_model("RN50", text_layer=3)
    with pytest.raises(ValueError, match=r"unknown override 'patch_size'.*Known:.*vision_width"):
        create_model("RN50", patch_size=16)


def test_create_model_overrides_reach_both_towers() -> None:
    with torch.device("meta"):
        model = create_model(
            "ViT-tiny",
            embed_dim=96,
            image_size=48,
            patch_size=16,
            vision_layers=2,
            vision_width=128,
            vision_head_width=32,
            text_layers=3,
            text_width=64,
            text_head_width=16,
            context_length=20,
            vocab_size=100,
            recompute="selective",
        )
    assert model.visual.positional_embedding.shape == (10, 128)
    assert model.visual.proj.shape == (128, 96)
    assert len(model.visual.transformer.resblocks) == 2
    assert model.visual.transformer.resblocks[0].attn.heads == 4
    assert model.positional_embedding.shape == (20, 64)
    assert model.token_embedding.weight.shape == (100, 64)
    assert model.text_projection.shape == (64, 96)
    assert len(model.transformer.resblocks) == 3
    assert model.transformer.resblocks[0].attn.heads == 4
    assert model.visual.transformer.recompute == "selective"
    assert model.transformer.recompute == "selective"


def test_every_field_of_a_config_can_be_overridden() -> None:
    config = get_config("ViT-tiny")
    flat = set(config._flat_names().values())
    wanted = {("vision", f.name) for f in dataclasses.fields(config.vision)}
    wanted |= {("text", f.name) for f in dataclasses.fields(config.text)}
    assert wanted <= flat


@pytest.mark.parametrize(
    ("name", "overrides", "message"),
    [
        ("ViT-B/32", {"image_size": 112}, "not a multiple of patch_size=32"),
        ("ViT-B/32", {"vision_width": 100}, "vision_head_width=64 must divide vision_width=100"),
        ("RN50", {"vision_layers": (1, 2)}, "four positive block counts"),
        ("RN50", {"vision_width": 33}, "positive even number"),
        ("RN50", {"image_size": 16}, "at least 31 pixels"),
        ("RN50", {"text_width": 100}, "text_head_width=64 must divide text_width=100"),
        ("RN50", {"text_layers": 0}, "text layers must be positive"),
        ("RN50", {"embed_dim": 0}, "embed_dim must be positive"),
        ("RN50", {"recompute": "some"}, "one of none, selective, full, auto; got 'some'"),
    ],
)
def test_create_model_impossible_value_names_the_remedy(
    name: str, overrides: dict, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        create_model(name, **overrides)


@pytest.mark.parametrize("size", [31, 33, 63, 64, 95, 112])
def test_resnet_grid_size_is_the_feature_maps(size: int) -> None:
    model = create_model("RN-tiny", image_size=size, text_layers=1, vocab_size=10).eval()
    with torch.no_grad():
        assert model.encode_image(torch.zeros(1, 3, size, size)).shape == (1, 256)
