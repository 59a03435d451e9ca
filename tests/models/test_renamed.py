"""Names of version 0.1 that still work, each with a warning that says the new one."""

from __future__ import annotations

import pytest
import torch

import clipfast.models
from clipfast.models import Architecture, create_model
from clipfast.models.activations import activation_bytes
from clipfast.models.catalogue import get_config


def test_model_config_is_architecture() -> None:
    with pytest.warns(DeprecationWarning, match="ModelConfig is now Architecture"):
        assert clipfast.models.ModelConfig is Architecture
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        _ = clipfast.models.Nothing


def test_checkpoint_is_recompute() -> None:
    with torch.device("meta"), pytest.warns(DeprecationWarning, match="checkpoint= is now recom"):
        model = create_model("ViT-tiny", checkpoint="full")
    assert model.config.recompute == model.transformer.recompute == "full"
    with pytest.warns(DeprecationWarning, match="checkpoint is now recompute"):
        assert model.config.checkpoint == "full"
    vision = model.config.vision
    with pytest.warns(DeprecationWarning, match="checkpoint= is now recompute="):
        assert Architecture("A", 8, vision, checkpoint="selective").recompute == "selective"
    small = get_config("ViT-tiny", vision_layers=1, text_layers=1)
    with pytest.warns(DeprecationWarning, match="checkpoint= is now recompute="):
        old = activation_bytes(small, 1, torch.float32, checkpoint="full")
    assert old == activation_bytes(small, 1, torch.float32, recompute="full")


def test_both_names_at_once_are_refused() -> None:
    with pytest.raises(TypeError, match="give recompute= alone"):
        create_model("ViT-tiny", checkpoint="full", recompute="full")
